"""Test the charts of runs and results."""

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
    """Make a folder with two runs, a file of metrics and a file of scores."""
    for name in ("one", "two"):
        shutil.copytree(trained, workdir / name)
    (workdir / "r.json").write_text(json.dumps({"AP": {"dog": 0.5, "cat": 0.75, "cow": None}}))
    rng = np.random.default_rng(0)
    np.savez("s.npz", scores=rng.random((40, 12)), targets=rng.integers(0, 2, (40, 12)))
    return workdir


def test_charts_have_a_light_background_and_empty_margins(results, command):
    result = command(plot, "one", "two", "r.json", "s.npz", "--out", "charts")
    assert result.status == 0, result.err
    assert sorted(path.name for path in Path("charts").iterdir()) == ["ap_r.png", "curves.png", "pr_s.png"]
    for path in Path("charts").iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert np.median(pixels) > 250
        assert pixels[:, 0].min() > 250 < pixels[:, -1].min()
        assert pixels[0].min() > 250 < pixels[-1].min()


def test_the_curve_and_its_ap_match_scikit_learn():
    rng = np.random.default_rng(0)
    scores, positives = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.3
    expected = average_precision_score(positives, scores)
    assert plot.precision_recall(scores, positives)[2] == pytest.approx(expected)
    column = {"scores": scores[:, None], "targets": positives[:, None], "ignore": np.zeros((60, 1), bool)}
    figure = plot.draw_precision_recall("x", column | {"names": ["a"]})
    for line in figure.axes[0].lines:  # the class and all labels together are the same here
        recall, precision = line.get_data()
        assert line.get_drawstyle() == "steps-pre"
        assert recall[0] == 0
        assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(expected)


def test_curves_leave_out_ignored_labels():
    arrays = {"scores": np.array([[0.9], [0.8], [0.1]]), "targets": np.array([[0], [1], [0]]), "names": ["a"]}
    for ignore, expected in (([[True], [False], [False]], "a (100.0)"), ([[False]] * 3, "a (50.0)")):
        figure = plot.draw_precision_recall("x", arrays | {"ignore": np.array(ignore)})
        assert figure.axes[0].lines[0].get_label() == expected


def test_files_of_the_same_name_give_separate_charts(results, command):
    for folder in ("a", "b"):
        (results / folder).mkdir()
        shutil.copy("r.json", folder)
    assert command(plot, "a/r.json", "b/r.json", "--out", "charts").status == 0
    assert sorted(path.name for path in Path("charts").iterdir()) == ["ap_a_r.png", "ap_b_r.png"]


def test_invalid_sources_are_reported_in_one_line(results, fails, monkeypatch):
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
