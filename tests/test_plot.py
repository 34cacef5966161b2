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
from utils.charts.class_bars import draw_average_precisions
from utils.charts.figures import line_styles
from utils.charts.precision_recall_curves import draw_precision_recall
from utils.charts.training_curves import RunLog, draw_curves
from utils.metrics.precision_recall import precision_recall
from utils.metrics.score_files import SavedScores


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


@pytest.mark.parametrize(("format", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_charts_have_the_format_and_the_names_asked_for(results, command, monkeypatch, format, start):
    drawn = {}
    for kind in ("curves", "average_precisions", "precision_recall"):
        draw = getattr(plot, f"draw_{kind}")
        monkeypatch.setattr(
            plot, f"draw_{kind}", lambda *a, draw=draw, kind=kind: drawn.setdefault(kind, draw(*a))
        )
    names = ["--names", "λ = 0", "VOC, $x", "scores", "λ = 1"]
    sources = ["one", "r.json", "s.npz", "two"]
    result = command(plot, *sources, "--out", "charts", "--format", format, *names)
    assert result.status == 0, result.err
    paths = [Path("charts", f"{name}.{format}") for name in ("ap_r", "curves", "pr_s")]
    assert sorted(Path("charts").iterdir()) == paths
    assert all(path.read_bytes().startswith(start) for path in paths)
    assert [line.get_label() for line in drawn["curves"].axes[0].lines] == ["λ = 0", "λ = 1"]
    assert drawn["average_precisions"].axes[0].get_title() == "VOC, $x"
    assert drawn["precision_recall"].axes[0].get_title() == "scores"


def test_no_axis_goes_beyond_100_and_no_line_crosses_a_number():
    run = RunLog(*np.array([[1, 2, 3], [0.5, 0.1, 0], [90, 100, 100], [0.01, 0.01, 0.001]]))
    assert draw_curves({"a": run}).axes[1].get_ylim()[1] <= 100
    figure = draw_average_precisions("x", {"dog": 1.0, "cat": 0.5, "cow": np.nan})
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert axis.get_xlim() == (0, 100)
    labels = axis.get_yticklabels()
    texts = [" ".join(label.get_text().split()) for label in labels]
    assert texts == ["cow no positives", "cat 50.0", "dog 100.0"]
    assert max(label.get_window_extent().x1 for label in labels) < axis.get_window_extent().x0
    assert figure.legends[0].get_texts()[0].get_text() == "mAP 75.0 %"


def test_curves_that_coincide_stay_visible():
    run = RunLog(*np.array([[1, 2, 3], [0.5, 0.1, 0], [90, 95, 100], [0.01, 0.01, 0.001]]))
    styles = list(line_styles(12))
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 12
    lines = draw_curves({str(i): run for i in range(12)}).axes[0].lines
    assert [line.get_color() for line in lines] == [style["color"] for style in styles]
    assert (np.diff([line.get_linewidth() for line in lines]) < 0).all()  # those on top are thinner
    assert [line.is_dashed() for line in lines[:5]] == [False, True, True, True, True]


def test_the_curve_and_its_ap_match_scikit_learn():
    rng = np.random.default_rng(0)
    scores, positives = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.3
    expected = average_precision_score(positives, scores)
    figure = draw_precision_recall("x", saved_scores(scores[:, None], positives[:, None]))
    assert figure.axes[0].lines[1].get_label() == f"a ({100 * expected:.1f})"
    for line in figure.axes[0].lines:  # the class and all labels together are the same here
        recall, precision = line.get_data()
        assert line.get_drawstyle() == "steps-pre"
        assert recall[0] == 0
        assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(expected)


def saved_scores(
    scores: np.ndarray,
    targets: np.ndarray,
    ignore: np.ndarray | None = None,
    unknown_is_negative: bool = False,
) -> SavedScores:
    """The content of a file of scores, with classes named a, b, c and so on."""
    num_images, num_classes = scores.shape
    if ignore is None:
        ignore = np.zeros(scores.shape, bool)
    names = [chr(ord("a") + i) for i in range(num_classes)]
    paths = [str(i) for i in range(num_images)]
    return SavedScores(scores, targets, ignore, names, paths, unknown_is_negative)


def test_curves_leave_out_ignored_labels():
    scores, targets = np.array([[0.9], [0.8], [0.1]]), np.array([[0], [1], [0]])
    for ignore, expected in (([[True], [False], [False]], "a (100.0)"), ([[False]] * 3, "a (50.0)")):
        for unknown_is_negative in (False, True):
            saved = saved_scores(scores, targets, np.array(ignore), unknown_is_negative)
            together, single = draw_precision_recall("x", saved).axes[0].lines
            assert single.get_label() == expected
            highest = 0.5 if unknown_is_negative else float(expected[3:-1]) / 100
            assert together.get_ydata().max() == highest


def test_of_many_classes_only_the_best_and_the_worst_are_drawn():
    ranking = np.linspace(1, 0, 12)
    saved = saved_scores(
        np.tile(ranking[:, None], 12), np.eye(12)
    )  # class i has its one positive at rank i + 1
    figure = draw_precision_recall("x", saved)
    together, *single = figure.axes[0].lines
    percents = [100 / rank for rank in (1, 2, 3, 4, 9, 10, 11, 12)]
    assert [line.get_label() for line in single] == [
        f"{name} ({percent:.1f})" for name, percent in zip("abcdijkl", percents)
    ]
    assert together.get_label() == "all labels together"
    assert figure.legends[0].get_title().get_text() == "AP (%): best and worst of 12"
    few = draw_precision_recall("x", saved_scores(np.tile(ranking[:8, None], 8), np.eye(8)))
    assert len(few.axes[0].lines) == 9
    assert few.legends[0].get_title().get_text() == "AP (%)"


def test_the_axes_of_precision_and_recall_start_where_the_curves_fall():
    positives = np.arange(40) < 20
    ranking = np.linspace(1, 0, 40)
    good = ranking.copy()
    good[[19, 20, 21]] = good[[21, 19, 20]]  # two negatives before the last positive
    figure = draw_precision_recall("x", saved_scores(good[:, None], positives[:, None]))
    (axis,) = figure.axes
    assert (axis.get_xlim(), axis.get_ylim()) == ((0.9, 1), (0.9, 1))
    for line in axis.lines:
        recall, precision = line.get_data()
        assert recall.min() == 0.9
        assert precision[-1] == 20 / 22
    for scores, expected in ((ranking, ((0, 1), (0.9, 1))), (-ranking, ((0, 1), (0, 1)))):
        (axis,) = draw_precision_recall("x", saved_scores(scores[:, None], positives[:, None])).axes
        assert (axis.get_xlim(), axis.get_ylim()) == expected


@pytest.mark.parametrize(
    ("rates", "scale"),
    [([0.1, 0.01], "log"), ([0.1, 0.02], "linear"), ([0.1, 0.0], "linear"), ([0.1, 0.1], "linear")],
)
def test_rates_that_fall_tenfold_have_a_logarithmic_axis(rates, scale):
    run = RunLog(np.array([1, 2]), np.array([0.5, 0.4]), np.array([50, 60]), np.array(rates))
    assert draw_curves({"a": run}).axes[2].get_yscale() == scale


def test_a_curve_ends_where_recall_reaches_1():
    scores, positives = np.array([0.9, 0.7, 0.7, 0.2, 0.1]), np.array([1, 0, 1, 0, 0], bool)
    recall, precision = precision_recall(scores, positives)
    assert recall.tolist() == [0, 0.5, 1]
    assert precision.tolist() == [1, 1, 2 / 3]


def test_infinite_scores_are_predicted_together():
    scores, positives = np.array([np.inf, np.inf, 0]), np.array([1, 0, 0], bool)
    recall, precision = precision_recall(scores, positives)
    assert (recall.tolist(), precision.tolist()) == ([0, 1], [0.5, 0.5])


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
    (results / "r.json").write_text('{"AP": {"a": null, "b": null}}')
    fails(plot, "r.json", "--out", "charts", says=["r.json: no class has positives"])
    for names in (["a"], ["a", "a"], ["a", "a", "b"]):
        fails(plot, "one", "s.npz", "--out", "charts", "--names", *names, says=["--names", "the 2 sources"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(plot, "one", "--out", "charts", says=["pip install matplotlib"])
