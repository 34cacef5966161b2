"""Charts of runs and results."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from utils import plot


@pytest.fixture
def results(workdir, trained) -> Path:
    """A folder with two runs, a file of metrics and one of scores."""
    for name in ("one", "two"):
        shutil.copytree(trained, workdir / name)
    (workdir / "r.json").write_text(json.dumps({"AP": {"dog": 0.5, "cat": 0.75, "cow": None}}))
    rng = np.random.default_rng(0)
    np.savez("s.npz", scores=rng.random((40, 12)), targets=rng.integers(0, 2, (40, 12)))
    return workdir


def test_charts(results, command):
    result = command(plot, "one", "two", "r.json", "s.npz", "--out", "charts")
    assert result.status == 0, result.err
    assert sorted(path.name for path in Path("charts").iterdir()) == ["ap_r.png", "curves.png", "pr_s.png"]
    for path in Path("charts").iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert np.median(pixels) > 250  # a light background
        assert pixels[:, 0].min() > 250 < pixels[:, -1].min()  # nothing reaches the edge
        assert pixels[0].min() > 250 < pixels[-1].min()


def test_precision_and_recall_are_scikit_learns():
    rng = np.random.default_rng(0)
    scores, positives = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.3
    expected = average_precision_score(positives, scores)
    curve = plot.precision_recall(scores, positives)
    assert plot.area(curve) == pytest.approx(expected)
    axis = plot.load_matplotlib().subplots()[1]
    plot.draw_steps(axis, curve)
    recall, precision = axis.lines[0].get_data()
    assert axis.lines[0].get_drawstyle() == "steps-pre"
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(expected)


def test_ignored_labels_are_on_no_curve(tmp_path):
    arrays = {"scores": np.array([[0.9], [0.8], [0.1]]), "targets": np.array([[0], [1], [0]]), "names": ["a"]}
    for ignore, expected in (([[True], [False], [False]], "a (100.0)"), ([[False]] * 3, "a (50.0)")):
        figure = plot.draw_precision_recall("x", arrays | {"ignore": np.array(ignore)})
        assert figure.axes[0].lines[0].get_label() == expected


def test_files_of_one_name_are_charts_of_their_own(results, command):
    for folder in ("a", "b"):
        (results / folder).mkdir()
        shutil.copy("r.json", folder)
    assert command(plot, "a/r.json", "b/r.json", "--out", "charts").status == 0
    assert sorted(path.name for path in Path("charts").iterdir()) == ["ap_a_r.png", "ap_b_r.png"]


def test_mistakes(results, fails, monkeypatch):
    (results / "none").mkdir()
    fails(plot, "none", "--out", "charts", says=["none", "log.jsonl"])
    fails(plot, "nothing", "--out", "charts", says=["nothing"])
    fails(plot, "one", "--out", "r.json", says=["--out", "r.json"])
    (results / "two" / "log.jsonl").write_text('{"epoch": 1}\n')
    fails(plot, "two", "--out", "charts", says=["two/log.jsonl", "epoch 1 lacks"])
    (results / "two" / "log.jsonl").write_text('{"epoch": 1, "train_loss": 1, "mAP": 1, "lr": 5}\n')
    fails(plot, "two", "--out", "charts", says=["two/log.jsonl", "epoch 1 lacks"])
    for content in ("[]", '{"AP": []}', '{"AP": {"a": null}}', '{"AP": {"a": "x"}}', "{"):
        (results / "r.json").write_text(content)
        fails(plot, "r.json", "--out", "charts", says=["r.json"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(plot, "one", "--out", "charts", says=["pip install matplotlib"])
