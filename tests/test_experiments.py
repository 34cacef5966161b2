"""The experiments on the paper's claim, in a tiny form."""

import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import claims, pointing
from main import make_parser
from utils.data.datasets import dataset_spec
from utils.runtime.errors import UserError
from utils.weights.contents import load_checkpoint

TINY = [
    "--model",
    "resnet18",
    "--pretrained",
    "none",
    "--img_size",
    "40",
    "--total_epoch",
    "1",
    "--warmup_epoch",
    "0",
    "--num_workers",
    "0",
]


@pytest.fixture
def folder(shapes_folder, tmp_path, monkeypatch) -> Path:
    """Change to a copy of the tiny data set shapes; scripts run in this process."""
    shutil.copytree(shapes_folder / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def run_command(script: str, *words: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script, *words, "--device", "cpu"])
            importlib.import_module(script.removesuffix(".py")).main()

    monkeypatch.setattr(claims, "run_command", run_command)
    return tmp_path


def test_the_row_and_the_seed_win_over_the_options_of_the_command(folder, command):
    words = ["--lam", "0.3", "--seed", "7", "--num_heads", "2", "--backbone_weights=weights.pth"]
    torch.save({}, "weights.pth")
    calls = []

    def run_command(script: str, *words: str) -> None:
        calls.append(make_parser().parse_args(words))
        raise UserError("stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "run_command", run_command)
        result = command(
            claims, "--dataset", "shapes", "--out", "out", "--rows", "csra_h4_lam0.2", "--seeds", "1", *words
        )
    assert result.err == "claims.py: error: stop\n"
    (args,) = calls
    assert (args.num_heads, args.lam, args.seed, args.pretrained) == (4, 0.2, 0, None)


@pytest.mark.parametrize("words", [["--model", "timm:vit_tiny"], ["--model=timm:vit_tiny"]], ids=str)
def test_timms_models_have_their_own_size_and_normalisation(words):
    spec = dataset_spec("voc07")
    of_the_data_set = claims.default_options(spec, ["--model", "resnet18"])
    of_the_model = claims.default_options(spec, words)
    size_and_pixels = {"--img_size=448", "--normalize=none"}
    assert size_and_pixels <= {*of_the_data_set}
    assert {*of_the_data_set} - {*of_the_model} == size_and_pixels


def test_data_sets_without_boxes_are_refused_before_a_run(folder, command):
    entries = json.loads(Path("data/shapes/test.json").read_text())
    for entry in entries:
        del entry["objects"]
    for content, says in ((json.dumps(entries), "has no boxes, in its label file or in"), ("[]", "empty")):
        Path("data/shapes/test.json").write_text(content)
        result = command(claims, "--dataset", "shapes", "--out", "out")
        assert result.status == 2
        assert says in result.err
        assert not list(Path("out").glob("runs"))


def test_without_matplotlib_there_is_no_run(folder, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(claims, "--dataset", "shapes", "--out", "out", says=["pip install matplotlib"])
    assert not Path("out").exists()


@pytest.mark.slow
def test_claims_prints_a_table_and_repeats_nothing(folder, command):
    options = ["--dataset", "shapes", "--out", "out", "--rows", "pooling", "csra_h1_lam0.1", *TINY]
    result = command(claims, *options)
    assert result.status == 0, result.err
    rows = result.out[result.out.index("| model |") :].splitlines()[2:6]
    assert [row.split(" | ")[0] for row in rows[::2]] == ["| average pooling", "| CSRA, 1 head, λ = 0.1"]
    assert all("tested with λ = " in row for row in rows[1::2])
    names = {f"{row}_{kind}" for row in ("pooling", "csra_h1_lam0.1") for kind in ("choice", "seed0")}
    assert {path.stem for path in Path("out").glob("*.json")} == names
    assert {path.stem for path in Path("out").glob("*.png")} == {"classes", "lambda"}
    models = {load_checkpoint(path)["config"]["model"] for path in Path("out").glob("runs/*/last.pth")}
    assert models == {"resnet18"}  # the default of shapes, also for the choice
    train, held_out = (
        json.loads(Path(f"data/shapes_choice/{n}.json").read_text()) for n in ("train", "test")
    )
    assert len(train) + len(held_out) == 20
    assert not {e["img_path"] for e in train} & {e["img_path"] for e in held_out}

    shutil.rmtree("out/runs")  # a second call reads the results
    again = command(claims, *options)
    assert again.status == 0, again.err
    assert again.out[again.out.index("| model |") :] == result.out[result.out.index("| model |") :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 143), (signal.SIGTERM, 143), (signal.SIGINT, 0)]
)
def test_a_signal_lets_the_command_save_and_stop(number, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("child.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        f"def save(*_):\n    time.sleep(0.5)\n    pathlib.Path('saved').touch()\n    sys.exit({status})\n"
        "signal.signal(signal.SIGTERM, save)\nsignal.signal(signal.SIGINT, save)\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\nos.rename('pid', 'ready')\ntime.sleep(60)\n"
    )

    def send() -> None:
        while not Path("ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:  # a terminal sends it to both
            os.kill(int(Path("ready").read_text()), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(UserError, match=f"ended with status {status}; run this again to go on"):
        claims.run_command(str(tmp_path / "child.py"))
    sender.join()
    assert Path("saved").exists()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_failed_command_is_reported(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"prepare_shapes\.py --num_train 0 ended with status 2"):
        claims.run_command("utils/prepare_shapes.py", "--num_train", "0")
    assert "'0' is not a whole" in capfd.readouterr().err


def test_the_table_takes_lambda_from_the_held_out_images():
    sweep = [{"lam": 0.0, "T": "inf", "mAP": 0.5}, {"lam": 0.3, "T": "inf", "mAP": 0.6}]
    run = {
        "mAP": 0.7,
        "CF1": 0.1,
        "OF1": 0.2,
        "epochs": [{"seconds": 60}],
        "pointing": {"all": {"hits": 0.5}},
    }
    judged = [{**run, "sweep": [{**sweep[0], "mAP": 0.9}, {**sweep[1], "mAP": mAP}]} for mAP in (0.70, 0.72)]
    results = {
        "pooling_choice": {**run, "sweep": sweep},
        "pooling_seed0": judged[0],
        "pooling_seed1": judged[1],
    }
    _, _, plain, chosen = claims.table(results)
    assert plain == "| average pooling | 2 | 70.00 ± 0.00 | 10.00 ± 0.00 | 20.00 ± 0.00 | 50.00 ± 0.00 | 1 |"
    assert chosen == "| average pooling, tested with λ = 0.3, T inf | 2 | 71.00 ± 1.41 | | | | |"


def test_the_chart_of_lambda_has_each_model_at_its_own_temperatures():
    sweep = [
        {"lam": lam, "T": T, "mAP": lam + x}
        for x, T in enumerate(("as trained", "1", "inf"))
        for lam in (0, 1)
    ]
    axis = claims.draw({f"{row}_choice": {"sweep": sweep} for row in claims.CHOICE_ROWS})["lambda"].axes[0]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axis.get_lines()}
    assert drawn == {claims.ROWS[row].title: [0, 100] for row in claims.CHOICE_ROWS}


def test_the_chart_of_classes_leaves_out_a_class_without_positives():
    runs = {
        "pooling_seed0": {"AP": {"a": 0.5, "b": None}},
        "csra_h1_lam0.1_seed0": {"AP": {"a": 0.6, "b": None}},
    }
    axis = claims.draw(runs)["classes"].axes[0]
    values = {line.get_label(): line.get_xdata().tolist() for line in axis.get_lines()}
    assert list(values.values()) == [[50], [60]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a"]


def test_boxes_of_voc_are_shares_of_the_image_and_difficult_objects_have_none(tmp_path):
    boxes = {"dog": ("0", (51, 21, 100, 80)), "cat": ("1", (1, 1, 10, 10))}
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{a}</xmin>"
        f"<ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, (difficult, (a, b, c, d)) in boxes.items()
    )
    (tmp_path / "Annotations").mkdir()
    size = "<size><width>200</width><height>100</height></size>"
    (tmp_path / "Annotations/7.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    entry = {"img_path": str(tmp_path / "JPEGImages/7.jpg")}
    assert pointing.read_boxes(entry) == [("dog", 0.25, 0.2, 0.25, 0.6)]
    (tmp_path / "Annotations/7.xml").write_text("<annotation></annotation>")
    with pytest.raises(UserError, match=r"7\.jpg has no boxes"):
        pointing.read_boxes(entry)


def test_the_highest_place_hits_a_box_that_holds_its_centre():
    values = np.zeros((2, 4))
    values[1, 2] = 1  # its centre is at 5/8 of the width and 3/4 of the height
    inside, beside = pointing.Box("dog", 0.6, 0.7, 0.05, 0.1), pointing.Box("dog", 0.65, 0.7, 0.3, 0.3)
    assert pointing.box_mask([inside])[pointing.highest(values)]
    assert not pointing.box_mask([beside])[pointing.highest(values)]
    assert pointing.box_mask([inside, beside]).mean() == pytest.approx(0.05 * 0.1 + 0.3 * 0.3, abs=0.005)


def test_hits_are_counted_by_the_size_of_the_objects():
    shares = pointing.by_size(np.array([True, False, True]), np.array([0.01, 0.02, 0.5]))
    assert shares["all"] == {"hits": pytest.approx(2 / 3), "random": pytest.approx(0.53 / 3), "maps": 3}
    assert shares["small (< 5 %)"]["hits"] == 0.5
    assert "medium" not in shares
