"""The best epoch is chosen on val.json where there is one, and the test images are evaluated once."""

import json
import sys
from pathlib import Path

import pytest
import torch

import main
import val
from helpers import OWN, TINY, finish_ranks, make_own, signal_at, start_ranks
from utils.inference.network_metrics import evaluate_model


@pytest.fixture
def own(workdir) -> Path:
    """Make a data set data/mine/ with 6 training, 3 validation and 5 test images."""
    entries = make_own(workdir, count=6)
    for split, chosen in (("val", entries[:3]), ("test", entries[1:])):
        (workdir / "data" / "mine" / f"{split}.json").write_text(json.dumps(chosen))
    return workdir


def results(command, *options) -> dict:
    """Evaluate with val.py and return the metrics that it writes."""
    result = command(
        val, "--dataset", "mine", "--num_workers", 0, "--device", "cpu", *options, "--out", "r.json"
    )
    assert result.status == 0, result.err
    return json.loads(Path("r.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--ema", "0.5"]], ids=str)
def test_the_test_images_are_evaluated_once_with_best_pth(own, command, monkeypatch, options):
    evaluated = []

    def worse_each_time(model, loader, *rest) -> dict:
        metrics = evaluate_model(model, loader, *rest)
        evaluated.append(len(loader.dataset))
        return metrics | ({"mAP": 0.9 / len(evaluated)} if evaluated[-1] == 3 else {})

    monkeypatch.setattr(main, "evaluate_model", worse_each_time)
    result = command(main, *OWN, *TINY, *options, "--output_dir", "run")
    assert result.status == 0, result.err
    assert evaluated == [3, 3, 5]
    assert "6 training and 3 validation images" in result.out
    assert torch.load("run/best.pth", weights_only=True)["record"]["epoch"] == 1
    written = json.loads(Path("run/test_results.json").read_text())
    assert written.pop("epoch") == 1
    assert written == results(command, "--load_from", "run/best.pth")
    assert f"mAP {100 * written['mAP']:.4f} %" in result.out.partition("best.pth on the test images:")[2]
    # A resume of the finished run evaluates them again, with the same result.
    Path("run/test_results.json").unlink()
    assert command(main, "--resume", "--output_dir", "run").status == 0
    assert json.loads(Path("run/test_results.json").read_text()) == written | {"epoch": 1}
    # A new run leaves nothing of this one.
    Path("data/mine/val.json").unlink()
    assert command(main, *OWN, *TINY, "--output_dir", "run", "--overwrite").status == 0
    assert not Path("run/test_results.json").exists()


@pytest.mark.slow
def test_the_log_holds_the_metrics_of_the_validation_images(own, command):
    assert command(main, *OWN, *TINY, "--output_dir", "run").status == 0
    record = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    on_val = results(command, "--load_from", "run/last.pth", "--split", "val")
    assert on_val["CP"] == record["CP"]
    assert list(on_val["AP"].values()) == record["AP"]


@pytest.mark.slow
def test_processes_share_the_test_images(own):
    options = [*TINY, "--batch_size", 2, "--total_epoch", 1, "--output_dir", "run"]
    status, out, err = finish_ranks(start_ranks(2, "main.py", *OWN, *options))
    assert status == 0, err
    assert out.count("best.pth on the test images:") == 1
    assert json.loads(Path("run/test_results.json").read_text())["epoch"] == 1


@pytest.mark.slow
def test_without_val_json_the_test_images_choose(own, command):
    Path("data/mine/val.json").unlink()
    result = command(main, *OWN, *TINY, "--output_dir", "run")
    assert "6 training and 5 test images" in result.out
    assert not Path("run/test_results.json").exists()


@pytest.mark.slow
def test_without_positives_in_val_json_the_last_epoch_is_the_best(own, command):
    file = Path("data/mine/val.json")
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([entry | {"target": [0] * len(entry["target"])} for entry in entries]))
    assert command(main, *OWN, *TINY, "--output_dir", "run").status == 0
    assert torch.load("run/best.pth", weights_only=True)["record"]["epoch"] == 2


@pytest.mark.slow
def test_a_signal_during_the_test_says_where_the_run_stopped(own, command):
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "evaluate", 3)
        result = command(main, *OWN, *TINY, "--total_epoch", 1, "--batch_size", 2, "--output_dir", "run")
    assert (result.status, "stopped at the test of best.pth; resume with" in result.out) == (143, True)


def test_a_missing_val_json_is_reported(trained, shapes, fails):
    says = ["data/shapes/val.json is missing", "JSON list"]
    fails(val, "--dataset", "shapes", "--split", "val", "--load_from", trained / "best.pth", says=says)


@pytest.mark.parametrize(
    ("options", "expected"), [([], 20), (["--total_epoch", "4"], 3), (["--decay_step", "7"], 7)], ids=str
)
def test_the_rate_of_an_own_data_set_drops_at_two_thirds_of_the_run(own, monkeypatch, options, expected):
    monkeypatch.setattr(sys, "argv", ["main.py", *OWN, *options])
    args = main.resolve(main.make_parser().parse_args())
    assert (args.decay_step, args.warmup_epoch) == (expected, 2)
