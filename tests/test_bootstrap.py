"""Test the intervals of metrics, and the comparison of two files of scores."""

import json
import math
import os
import unicodedata

import numpy as np
import pytest

from experiments.coverage import Case, measure_coverage, true_average_precision
from utils import evaluation
from utils.evaluation import evaluate
from utils.metrics.bootstrap import bootstrap, draw_images, interval, join_blocks, rank_classes
from utils.metrics.score_files import SavedScores


def random_scores(images: int, classes: int, decimals: int, unknown_is_negative: bool = False) -> SavedScores:
    rng = np.random.default_rng(images)
    scores = rng.random((images, classes)).round(decimals)
    targets = (rng.random(scores.shape) < 0.2).astype(int)
    ignore = rng.random(scores.shape) < 0.15
    if classes > 2:
        targets[:, -1] = 0
    return SavedScores(scores, targets, ignore, [], [], unknown_is_negative)


@pytest.mark.parametrize("unknown_is_negative", [False, True])
@pytest.mark.parametrize(("images", "classes"), [(1, 1), (7, 2), (60, 4), (300, 6)])
@pytest.mark.parametrize("decimals", [1, 9])
def test_resamples_have_the_metrics_of_the_images_that_they_draw(
    images, classes, decimals, unknown_is_negative, monkeypatch
):
    monkeypatch.setattr("utils.metrics.bootstrap.BLOCK_DRAWS", 7 * images)  # 7, 7 and 6 resamples
    saved = random_scores(images, classes, decimals, unknown_is_negative)
    thresholds = np.linspace(0.3, 0.7, classes)
    blocks = list(bootstrap([rank_classes(saved, thresholds)], images, 20, seed=3))
    assert [len(block["mAP"]) for (block,) in blocks] == [7, 7, 6]
    found = join_blocks([block for (block,) in blocks])

    rng = np.random.default_rng(3)
    for index in range(20):
        rows = rng.integers(0, images, images)
        arrays = (saved.scores[rows], saved.targets[rows], saved.ignore[rows])
        expected = evaluate(*arrays, thresholds, unknown_is_negative)
        for name in ("mAP", "CF1", "OF1", "AP"):
            np.testing.assert_allclose(found[name][index], expected[name], rtol=0, atol=1e-12)


def test_two_models_are_evaluated_on_the_same_resamples():
    rankings = rank_classes(random_scores(50, 3, 9), np.full(3, 0.5))
    for first, second in bootstrap([rankings, rankings], 50, 30, seed=0):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_a_resample_draws_as_many_images_as_there_are():
    draws = draw_images(np.random.default_rng(0), 40, 500)
    assert (draws.sum(axis=1) == 40).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(40), abs=0.2)


def test_an_interval_holds_the_middle_values_moved_by_their_bias():
    values = np.random.default_rng(0).permutation(10_001) / 10_000
    assert interval(values) == pytest.approx((0.025, 0.975), abs=1e-9)
    assert interval(values, 0.5) == pytest.approx((0.025, 0.975), abs=1e-3)
    assert interval(np.append(values, math.nan), 0.5) == pytest.approx((0.025, 0.975), abs=1e-3)
    # 84.13 % of normal numbers are below 1, so the bounds are moved by 2 × 1 standard deviations: from -1.96
    # and 1.96 to 0.04 and 3.96, below which 51.6 % and all but 0.004 % are.
    assert interval(values, 0.8413) == pytest.approx((0.516, 1), abs=1e-3)
    assert interval(values, 0.1587) == pytest.approx((0, 0.484), abs=1e-3)
    assert all(map(math.isnan, interval(np.full(3, math.nan))))
    for estimate in (None, -1, 0, 1):
        assert interval(np.zeros(9), estimate) == (0, 0)


def test_the_true_average_precision_is_that_of_many_images():
    rng = np.random.default_rng(0)
    targets = rng.random((500_000, 1)) < 0.1
    scores = rng.normal(size=targets.shape) + 1.5 * targets
    assert true_average_precision(1.5, 0.1) == pytest.approx(evaluate(scores, targets)["mAP"], abs=0.005)


@pytest.mark.slow
def test_intervals_hold_the_true_values():
    coverage = measure_coverage(Case(600, 0.1, (2.0, 2.1)), num_sets=200, num_resamples=250, seed=0)
    assert 0.92 <= coverage.difference <= 0.98
    assert 0.92 <= coverage.mean_ap <= 0.98


def test_intervals_of_few_sets_hold_the_true_values():
    coverage = measure_coverage(Case(500, 0.2, (1.5, 1.7)), num_sets=30, num_resamples=200, seed=0)
    assert min(coverage) >= 25 / 30  # 28.5 are expected


ROWS = 60


def save(path, better: float = 0.0, order=None, **changes) -> None:
    """Save scores of two classes: those of dog are random, and `better` moves those of cat to the labels."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (ROWS, 2))
    scores = rng.random((ROWS, 2))
    scores[:, 0] = (1 - better) * scores[:, 0] + better * targets[:, 0]
    arrays = {"scores": scores, "targets": targets, "ignore": rng.random((ROWS, 2)) < 0.1}
    arrays["paths"] = np.array([f"{row // 2}.jpg" for row in range(ROWS)])  # two rows each, as in WIDER
    order = np.arange(ROWS) if order is None else order
    arrays = {name: array[order] for name, array in arrays.items()}
    arrays |= {"names": np.array(["cat", "dog"])}
    np.savez(path, **arrays | changes)


def test_a_comparison_gives_the_difference_and_its_interval(workdir, command):
    save("a.npz")
    pairs = np.random.default_rng(1).permutation(ROWS // 2)
    save("b.npz", better=0.6, order=np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel())
    result = command(evaluation, "a.npz", "b.npz", "--resamples", 200, "--out", "r.json")
    assert result.status == 0, result.err
    written = json.loads((workdir / "r.json").read_text())
    for name in ("mAP", "CF1", "OF1"):
        assert written["difference"][name] == pytest.approx(written["b"][name] - written["a"][name])
    assert written["a"]["file"] == "a.npz"
    assert (written["resamples"], written["seed"]) == (200, 0)
    for file, key in (("a.npz", "a"), ("b.npz", "b")):
        alone = command(evaluation, file).out.splitlines()
        assert alone[-1] == f"mAP {100 * written[key]['mAP']:.4f} %"

    low, high = written["intervals"]["mAP"]
    assert 0 < low < written["difference"]["mAP"] < high
    assert written["intervals"]["AP"]["dog"] == [0, 0]
    lines = result.out.splitlines()
    assert lines[0] == "60 images, threshold 0.5, 200 resamples"
    shown = [f"{100 * value:.2f}" for value in (written["difference"]["mAP"], low, high)]
    assert lines[-1] == "mAP difference +{} (95 % interval {} to {})".format(*shown)
    assert [line.split()[0] for line in lines[5:-1]] == ["cat", "mAP", "CF1", "OF1"]

    again = command(evaluation, "a.npz", "b.npz", "--resamples", 200)
    assert again.out == result.out
    other = command(evaluation, "a.npz", "b.npz", "--resamples", 200, "--seed", 1)
    assert other.out.splitlines()[-1] != lines[-1]
    swapped = command(evaluation, "b.npz", "a.npz", "--resamples", 200).out.splitlines()[-1]
    assert swapped.startswith(f"mAP difference -{shown[0]} (95 % interval -")


SPELLINGS = {
    "with a dot": lambda path: f"./{path}",
    "through a folder": lambda path: f"x/../{path}",
    "absolute": os.path.abspath,
    "with backslashes": lambda path: path.replace("/", "\\"),
    "with two characters for an accent": lambda path: unicodedata.normalize("NFD", path),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_images_are_matched_however_their_paths_are_spelled(workdir, command, spell):
    paths = [f"photos/\u00e9/{row}.jpg" for row in range(ROWS)]
    order = np.random.default_rng(1).permutation(ROWS)
    save("a.npz", paths=np.array(paths))
    save("b.npz", order=order, paths=np.array([spell(paths[row]) for row in order]))
    result = command(evaluation, "a.npz", "b.npz", "--resamples", 5)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1] == "mAP difference +0.00 (95 % interval 0.00 to 0.00)"


def test_equal_models_do_not_differ(workdir, command):
    save("a.npz")
    lines = command(evaluation, "a.npz", "a.npz", "--resamples", 20).out.splitlines()
    assert lines[3] == "no AP of a class differs beyond its 95 % interval; metrics of all classes, in %"
    assert lines[-1] == "mAP difference +0.00 (95 % interval 0.00 to 0.00)"


def test_one_file_has_an_interval(workdir, command):
    save("a.npz")
    result = command(evaluation, "a.npz", "--resamples", 100, "--out", "r.json")
    written = json.loads((workdir / "r.json").read_text())
    low, high = written["intervals"]["mAP"]
    assert low < written["mAP"] < high
    assert list(written["intervals"]["AP"]) == ["cat", "dog"]
    shown = f"mAP {100 * written['mAP']:.2f} (95 % interval {100 * low:.2f} to {100 * high:.2f})"
    first, *others = result.out.splitlines()
    assert first == f"60 images, threshold 0.5, {shown}"
    without = command(evaluation, "a.npz", "--resamples", 0).out.splitlines()
    assert without == ["60 images, threshold 0.5", *others]


def test_without_positives_there_is_no_interval(workdir, command, fails):
    save("a.npz", targets=np.zeros((ROWS, 2)))
    assert command(evaluation, "a.npz").out.splitlines()[0] == "60 images, threshold 0.5"
    fails(evaluation, "a.npz", "a.npz", says=["a.npz", "no class has a positive"])


OTHER_PATHS = np.array([f"{row}.jpg" for row in range(ROWS)])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"paths": OTHER_PATHS}, ["other images: 30 only in the second file, such as 30.jpg;"]),
        (
            {"paths": np.array([f"photos/{row}.jpg" for row in range(ROWS)])},
            ["30 only in the first file, such as 0.jpg, and 60 only in the second file, such as photos"],
        ),
        ({"paths": np.sort(OTHER_PATHS)}, ["other images"]),
        ({"targets": np.ones((ROWS, 2))}, ["other labels", "0.jpg, class"]),
        ({"ignore": np.zeros((ROWS, 2), bool)}, ["other labels"]),
        ({"names": np.array(["dog", "cat"])}, ["class 0 is 'cat' and 'dog'"]),
        ({"unknown_is_negative": True}, ["unknown_is_negative"]),
        ({"scores": np.linspace(-1, 1, 2 * ROWS).reshape(ROWS, 2)}, ["b.npz", "-1 to 1", "--threshold"]),
    ],
)
def test_files_that_cannot_be_compared_are_refused(workdir, fails, changes, says):
    save("a.npz")
    save("b.npz", **changes)
    fails(evaluation, "a.npz", "b.npz", says=says)


def test_files_with_other_numbers_of_rows_or_classes_are_refused(workdir, fails):
    save("a.npz")
    save("b.npz", order=np.arange(ROWS - 1))
    fails(evaluation, "a.npz", "b.npz", says=["60 and 59 rows"])
    np.savez("c.npz", scores=np.eye(3), targets=np.eye(3))
    fails(evaluation, "a.npz", "c.npz", says=["2 and 3 classes"])


def test_options_that_do_not_fit_two_files_are_refused(workdir, fails):
    save("a.npz")
    fails(evaluation, "a.npz", "a.npz", "--resamples", 0, says=["--resamples 0"])
    fails(evaluation, "a.npz", "--resamples", -1, says=["'-1'"])
    fails(evaluation, "a.npz", "a.npz", "--fit_thresholds", "t.json", says=["--fit_thresholds t.json"])
    fails(evaluation, "a.npz", "--fit_thresholds", "t.json", "--out", "t.json", says=["t.json"])


def test_only_its_own_file_is_replaced(workdir, command, fails):
    save("a.npz")
    one, two = ["a.npz", "--resamples", 5, "--out"], ["a.npz", "a.npz", "--resamples", 5, "--out"]
    for _ in range(2):
        assert command(evaluation, *one, "one.json").status == 0
        assert command(evaluation, *two, "two.json").status == 0
    fails(evaluation, *one, "two.json", says=["--out two.json exists and is not from"])
    fails(evaluation, *two, "one.json", says=["--out one.json exists and is not from"])
    fails(evaluation, *one, "a.npz", says=["--out a.npz exists and is not from"])
