"""The benchmark: every stage runs, in a tiny form, and notices a version that computes something else."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks import bench, network, stages, textbook
from benchmarks.inputs import make_coco, make_photos
from benchmarks.timing import Settings, in_child, run_measured
from conftest import REPOSITORY
from pipeline.csra import MHA
from pipeline.resnet_csra import ResNet_CSRA
from utils.evaluation import evaluate
from utils.inference import sigmoid
from utils.losses import LOSSES
from utils.transforms import train_transform

# For each stage, a function that the scripts call, and a wrong one to put in its place.
WRONG = {
    "loader": ("benchmarks.stages.train_transform", lambda *args: train_transform(*args).flip(2)),
    "head": ("benchmarks.stages.MHA", lambda num_heads, lam, *args: MHA(num_heads, lam + 0.01, *args)),
    "metrics": ("benchmarks.stages.evaluate", lambda *args: evaluate(*args) | {"OF1_3": 0.5}),
    "train": ("main.LOSSES", {"bce": lambda logits, targets: LOSSES["bce"](1.1 * logits, targets)}),
    "val": ("benchmarks.network.sigmoid", lambda logits: sigmoid(1.1 * logits)),
    "prepare": ("benchmarks.stages.make_coco", lambda *args: make_coco(*args) | {"another.jpg": {1}}),
}


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Iterator[Settings]:
    """Tiny inputs. Training and validation stay in this process, with arguments pickled as for a child."""
    monkeypatch.setattr(network, "in_child", lambda f, *args: f(*pickle.loads(pickle.dumps(args))))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, tiny work is slow while other processes use the cores
    yield Settings(
        tmp_path,
        make_photos(tmp_path / "photos", 3),
        depth=50,
        img_size=64,
        batch_size=2,
        num_steps=1,
        num_scored_images=200,
        num_coco_images=30,
        num_coco_boxes=100,
        num_rounds=1,
        num_long_rounds=1,
    )
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("stage", bench.STAGES)
def test_each_stage_computes_the_same_as_the_textbook(settings, stage):
    rows = list(bench.STAGES[stage](settings))
    assert rows
    for row in rows:
        assert row.same, row.check
        assert min(row.textbook, row.ours, row.limit) > 0
        assert row.stage in bench.format_row(row)


@pytest.mark.parametrize("stage", WRONG)
def test_each_stage_notices_a_wrong_result(settings, stage, monkeypatch):
    monkeypatch.setattr(*WRONG[stage])
    assert not all(row.same for row in bench.STAGES[stage](settings))


def test_all_stages_but_one_compare_results():
    assert set(bench.STAGES) - set(WRONG) == {"startup"}


def test_a_wrong_result_ends_the_command_with_an_error(tmp_path, monkeypatch, command):
    make_photos(tmp_path, 1)
    options = ("metrics", "--quick", "--device", "cpu", "--images", tmp_path, "--out", tmp_path / "out.json")
    result = command(bench, *options)
    assert result.status == 0, result.err
    assert "yes: metrics to" in result.out
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["same"]
    monkeypatch.setattr(*WRONG["metrics"])
    result = command(bench, *options)
    assert result.status == "a stage does not compute what the textbook computes"
    assert "NO: metrics to" in result.out


def test_a_child_process_computes_the_result():
    assert in_child(os.getpid) != os.getpid()


def test_metrics_are_those_of_the_textbook():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((50, 6)), rng.integers(0, 2, (50, 6))
    ours = stages.evaluate(scores, targets)
    assert {name: ours[name] for name in ours if name != "AP"} == pytest.approx(
        textbook.evaluate(scores, targets)
    )


def test_the_textbooks_network_gets_our_weights():
    torch.manual_seed(0)
    ours, plain = ResNet_CSRA(2, 0.1, 5, depth=50).eval(), textbook.Network(50, 2, 0.1, 5).eval()
    network.scale_down_branches(ours)
    textbook.copy_weights(plain, ours)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), plain(images))


def test_prepare_coco_finds_the_synthetic_labels(tmp_path):
    labels = make_coco(tmp_path / "COCO2014", num_images=30, num_boxes=100)
    command = [str(REPOSITORY / "utils" / "prepare_coco.py"), "--data_path", str(tmp_path / "COCO2014")]
    seconds, memory = run_measured(command, tmp_path)
    assert 0 < seconds < 60
    assert memory > 1
    entries = json.loads((tmp_path / "data" / "coco" / "train_coco2014.json").read_text())
    assert len(entries) == 30
    assert [sum(entry["target"]) for entry in entries] == [len(labels[name]) for name in sorted(labels)]


def test_a_mistake_ends_the_command_with_one_line(tmp_path):
    script = str(REPOSITORY / "benchmarks" / "bench.py")
    command = [sys.executable, script, "loader", "--images", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no JPEG files there" in result.stderr
