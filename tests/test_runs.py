"""main.py and val.py on tiny data: what they write and print, and whether results repeat."""

import json
import math
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import main
import val
from helpers import OWN, REPOSITORY, SHAPES, TINY, make_own
from utils.data import shapes as shapes_files
from utils.data.datasets import DATASETS
from utils.data.order import TrainingBatches
from utils.data.samples import load_split
from utils.runtime.errors import UserError
from utils.training.folder import make_new_folder
from utils.weights.writing import save_checkpoint


def log(folder: Path) -> list[dict]:
    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pth", weights_only=True)["model"]


def metric_lines(out: str) -> list[str]:
    """Return the lines of a report, from the head of the table to the mAP."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class "))
    return lines[start : next(i for i, line in enumerate(lines) if line.startswith("mAP")) + 1]


BY_CLASS = ["positives", "predicted", "correct", "precision", "recall", "F1"]


def test_a_run_writes_its_files(trained):
    assert sorted(os.listdir(trained)) == ["best.pth", "last.pth", "log.jsonl", "previous.pth"]
    records = log(trained)
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {
        *("epoch", "lr", "train_loss", "seconds", "images_per_second", "mAP", "AP"),
        *("CP", "CR", "CF1", "OP", "OR", "OF1", "CP_3", "CR_3", "CF1_3", "OP_3", "OR_3", "OF1_3"),
        *BY_CLASS,
    }
    # With two iterations per epoch and one epoch of warm-up, iteration 1 has half the rate.
    assert records[0]["lr"] == pytest.approx({"backbone": 0.005, "classifier": 0.05})
    assert records[1]["lr"] == pytest.approx({"backbone": 0.01, "classifier": 0.1})

    best = torch.load(trained / "best.pth", weights_only=True)
    last = torch.load(trained / "last.pth", weights_only=True)
    assert best["record"]["mAP"] == max(record["mAP"] for record in records)
    assert last["record"]["epoch"] == 2
    assert last["best"] == best["record"]
    assert last["optimizer"]["state"]
    assert best["classes"] == json.loads((REPOSITORY / "data/shapes/classes.json").read_text())
    assert {"model": "resnet18", "num_heads": 1, "img_size": 40, "seed": 0}.items() <= best["config"].items()


def test_val_gives_the_metrics_of_training(trained, shapes, command):
    best = torch.load(trained / "best.pth", weights_only=True)["record"]
    for _ in range(2):  # the second time it replaces its own file
        result = command(val, *SHAPES, "--load_from", trained / "best.pth", "--out", "results/r.json")
    assert result.status == 0, result.err
    assert f"mAP {100 * best['mAP']:.4f} %" in result.out
    written = json.loads(Path("results/r.json").read_text())
    classes = json.loads((REPOSITORY / "data/shapes/classes.json").read_text())
    best["AP"] = [None if math.isnan(ap) else ap for ap in best["AP"]]
    for name, value in written.items():
        is_by_class = isinstance(best[name], list)
        assert value == (dict(zip(classes, best[name], strict=True)) if is_by_class else best[name])
    assert [name for name in written if isinstance(written[name], dict)] == ["AP", *BY_CLASS]


def test_val_reads_every_kind_of_checkpoint(trained, shapes, command, tmp_path):
    state = weights(trained)
    wrapped = {f"module.{k}": v for k, v in state.items()}
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    flags = ["--img_size", 40, "--num_heads", 1, "--lam", 0.1, "--num_cls", 8]
    expected = metric_lines(command(val, *SHAPES, "--load_from", trained / "last.pth").out)
    foreign = {"model": "resnet18", "state_dict": wrapped, "config": {"img_size": "40", "lam": None}}
    for content in (state, wrapped, old, foreign, {"model": state}):
        torch.save(content, tmp_path / "released.pth")
        result = command(val, *SHAPES, *flags, "--load_from", tmp_path / "released.pth")
        assert result.status == 0, result.err
        assert metric_lines(result.out) == expected
    # --lam changes the result, and a state dict does not hold it.
    assert (
        metric_lines(command(val, *SHAPES, "--load_from", trained / "last.pth", "--lam", 5).out) != expected
    )


def test_val_evaluates_the_training_images(trained, shapes, command):
    result = command(val, *SHAPES, "--load_from", trained / "best.pth", "--split", "train")
    assert "20 train images" in result.out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--print_freq", 1], ["--num_workers", 2], ["--num_workers", 4]], ids=str
)
def test_weights_do_not_depend_on_workers_or_printing(trained, shapes, command, tmp_path, options):
    arguments = ["--dataset", "shapes", *TINY, *options, "--output_dir", tmp_path / "run"]
    result = command(main, *arguments)
    assert result.out.count("  step ") == (4 if "--print_freq" in options else 1)  # the first step has one
    ours, first = weights(tmp_path / "run"), weights(trained)
    assert all(torch.equal(ours[name], first[name]) for name in first)


@pytest.mark.slow
def test_two_threads_give_the_same_weights_each_time(shapes, command, tmp_path):
    torch.set_num_threads(2)
    try:
        for folder in ("a", "b"):
            options = [*TINY, "--total_epoch", 1, "--output_dir", tmp_path / folder]
            assert command(main, "--dataset", "shapes", *options).status == 0
    finally:
        torch.set_num_threads(1)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_training_equals_a_simple_loop(trained, shapes, monkeypatch):
    """Train again with plain PyTorch: SGD on the mean loss of each batch, with the rate of the formula."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *TINY])
    model = main.build_model(main.resolve(main.make_parser().parse_args()), torch.device("cpu"))
    dataset = load_split(DATASETS["shapes"], "train", 40, train=True)
    *backbone, head = model.parameters()
    groups = [{"params": backbone}, {"params": [head]}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    model.train()
    for epoch in range(2):
        batches = TrainingBatches(len(dataset), 16, seed=0)
        batches.set_epoch(epoch)
        total = 0
        for k, batch in enumerate(batches):
            for group, base in zip(optimizer.param_groups, (0.01, 0.1)):
                group["lr"] = base * min(1, (2 * epoch + k) / 2)
            samples = [dataset[key] for key in batch]
            logits = model(torch.stack([image for image, _, _ in samples]).float() / 255)
            targets = torch.stack([target for _, target, _ in samples]).float()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            total += losses.mean(dim=1).sum().item()
        assert log(trained)[epoch]["train_loss"] == pytest.approx(total / 20, rel=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights(trained)[name], rtol=1e-4, atol=1e-6)


def test_another_seed_changes_the_weights(trained, shapes, command, tmp_path):
    command(
        main, "--dataset", "shapes", *TINY, "--seed", 1, "--total_epoch", 1, "--output_dir", tmp_path / "run"
    )
    ours, first = weights(tmp_path / "run"), weights(trained)
    assert not torch.equal(ours["conv1.weight"], first["conv1.weight"])


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {"a": torch.zeros(3)}})
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="last.pth cannot be written: No space"):
        save_checkpoint(path, {"model": {"a": torch.ones(3)}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_runs_with_the_same_options_get_different_folders(workdir):
    args = Namespace(output_dir=None, dataset="voc07", model="resnet18", num_heads=1, lam=0.1)
    name = "checkpoint/voc07_resnet18_h1_lam0.1"
    assert [str(make_new_folder(args)) for _ in range(3)] == [f"{name}{s}" for s in ("", "-2", "-3")]


@pytest.mark.slow
def test_a_run_replaces_another_only_with_overwrite(trained, shapes, command, fails):
    arguments = ["--dataset", "shapes", *TINY, "--total_epoch", 1]
    for folder in ("shapes_resnet18_h1_lam0.1", "shapes_resnet18_h1_lam0.1-2"):
        result = command(main, *arguments)
        assert f"checkpoint/{folder}/best.pth" in result.out
        assert len(log(Path("checkpoint", folder))) == 1
    fails(main, *arguments, "--output_dir", trained, says=[trained, "--overwrite"])
    assert len(log(trained)) == 2
    folder = Path("checkpoint/shapes_resnet18_h1_lam0.1")
    assert command(main, *arguments, "--output_dir", folder, "--overwrite", "--seed", 7).status == 0
    assert len(log(folder)) == 1
    assert torch.load(folder / "best.pth", weights_only=True)["config"]["seed"] == 7


@pytest.mark.slow
def test_shapes_are_made_on_first_use(workdir, command, monkeypatch):
    made = []
    monkeypatch.setattr(shapes_files, "make_shapes", lambda *args: made.append(args))
    result = command(main, "--dataset", "shapes", *TINY)
    assert made[0][0] == Path("data/shapes")
    assert "making it with utils/prepare_shapes.py" in result.out
    # make_shapes is replaced and makes nothing, so the run ends with the command that makes the data set.
    assert result.status == 2
    assert "python utils/prepare_shapes.py" in result.err


def test_the_defaults_are_the_papers_recipe(monkeypatch):
    def values(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        return vars(main.resolve(main.make_parser().parse_args()))

    paper = {"batch_size": 16, "lr": 0.01, "momentum": 0.9, "w_d": 1e-4, "warmup_epoch": 2, "total_epoch": 30}
    paper |= {"img_size": 448, "model": "resnet101", "pretrained": "imagenet", "cutmix": None}
    voc = values("--num_heads", "1", "--lam", "0.1", "--dataset", "voc07", "--num_cls", "20")
    assert voc.items() >= (paper | {"decay_step": 4, "num_heads": 1, "lam": 0.1}).items()
    coco = values("--num_heads", "6", "--lam", "0.5", "--dataset", "coco", "--num_cls", "80")
    assert coco.items() >= (paper | {"decay_step": 5, "num_heads": 6, "lam": 0.5}).items()
    shapes = values("--dataset", "shapes", "--total_epoch", "9")
    assert (
        shapes.items()
        >= {"model": "resnet18", "pretrained": "none", "img_size": 64, "total_epoch": 9}.items()
    )
    assert values("--cutmix", "file.pth")["pretrained"] is None


@pytest.mark.parametrize(
    ("options", "rates"), [([], [0.02, 0.2]), (["--head_lr_factor", "1"], [0.02, 0.02])], ids=str
)
def test_the_classifier_has_ten_times_the_learning_rate_or_another(monkeypatch, options, rates):
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", "--lr", "0.02", *options])
    args = main.resolve(main.make_parser().parse_args())
    optimizer = main.build_optimizer(main.build_model(args, torch.device("cpu")), args)
    backbone, classifier = optimizer.param_groups
    assert [backbone["base_lr"], classifier["base_lr"]] == pytest.approx(rates)
    assert len(classifier["params"]) == 1
    assert len(backbone["params"]) == 60
    assert {g["weight_decay"] for g in optimizer.param_groups} == {1e-4}
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}


@pytest.mark.slow
def test_a_users_data_set_trains_and_validates(workdir, command):
    make_own(workdir)
    arguments = [*OWN, *TINY, "--output_dir", "run"]
    assert command(main, *arguments).status == 0
    result = command(
        val, "--dataset", "mine", "--load_from", "run/best.pth", "--num_workers", 0, "--device", "cpu"
    )
    assert metric_lines(result.out)[-1].startswith("mAP")


@pytest.mark.slow
def test_a_class_without_positives_has_no_ap(workdir, command):
    make_own(workdir, count=3, classes=("a", "b", "c", "never"))
    arguments = [*OWN, *TINY, "--output_dir", "run"]
    result = command(main, *arguments)
    assert "no positives, so left out of mAP, and 0 in CP and CR: never" in result.out
    assert log(Path("run"))[-1]["AP"][3] is None
