"""The benchmark's own stages, made small: they agree with the textbook, and would say so if they did not."""

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks import network, stages, textbook
from benchmarks.inputs import make_coco, make_photos
from benchmarks.timing import run_measured
from conftest import REPOSITORY
from pipeline.resnet_csra import ResNet_CSRA

QUICK = Namespace(quick=True, device="cpu", amp="off")


def test_metrics_are_those_of_the_textbook():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((50, 6)), rng.integers(0, 2, (50, 6))
    ours = stages.evaluate(scores, targets)
    assert {name: ours[name] for name in ours if name != "AP"} == pytest.approx(
        textbook.evaluate(scores, targets)
    )


def test_a_wrong_result_is_told(monkeypatch):
    (row,) = stages.time_metrics(QUICK)
    assert row.same
    right = stages.evaluate
    monkeypatch.setattr(stages, "evaluate", lambda *args: right(*args) | {"OF1_3": 0.5})
    (row,) = stages.time_metrics(QUICK)
    assert not row.same


def test_the_loader_stage(tmp_path):
    photos = make_photos(tmp_path, 3)
    rows = list(stages.time_loader(Namespace(quick=True, photos=photos)))
    assert all(row.same for row in rows)
    assert all(row.limit > 0 for row in rows)


def test_the_textbooks_network_has_our_weights():
    torch.manual_seed(0)
    ours, plain = ResNet_CSRA(2, 0.1, 5, depth=50).eval(), textbook.Network(50, 2, 0.1, 5).eval()
    network.calm(ours)
    textbook.copy_weights(plain, ours)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), plain(images))


def test_made_up_annotations_are_prepared_as_made(tmp_path):
    labels = make_coco(tmp_path / "COCO2014", images=30, boxes=100)
    command = [str(REPOSITORY / "utils" / "prepare_coco.py"), "--data_path", str(tmp_path / "COCO2014")]
    seconds, memory = run_measured(command, tmp_path)
    assert 0 < seconds < 60
    assert memory > 1
    entries = json.loads((tmp_path / "data" / "coco" / "train_coco2014.json").read_text())
    assert len(entries) == 30
    assert [sum(entry["target"]) for entry in entries] == [len(labels[name]) for name in sorted(labels)]


def test_mistakes_take_one_line(tmp_path):
    command = [
        sys.executable,
        str(REPOSITORY / "benchmarks" / "bench.py"),
        "loader",
        "--images",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no JPEG files there" in result.stderr
