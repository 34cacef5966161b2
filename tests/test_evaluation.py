"""Test the metrics on examples computed by hand, against scikit-learn, and on edge cases."""

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from utils.evaluation import evaluate
from utils.metrics.report import format_report
from utils.metrics.thresholds import best_threshold

NAMES = ["mAP", "AP", "CP", "CR", "CF1", "OP", "OR", "OF1"]
NAMES += [f"{name}_3" for name in NAMES[2:]]
BY_CLASS = ["positives", "predicted", "correct", "precision", "recall", "F1"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def column(*values):
    return np.array(values, float)[:, None]


def test_ap_of_an_example_computed_by_hand():
    # The ranking is + - + - +, so the precision at the positives is 1/1, 2/3 and 3/5.
    metrics = evaluate(column(0.9, 0.8, 0.7, 0.6, 0.5), column(1, 0, 1, 0, 1))
    assert metrics["AP"] == [pytest.approx((1 + 2 / 3 + 3 / 5) / 3, abs=1e-15)]
    assert metrics["mAP"] == metrics["AP"][0]
    assert list(metrics) == NAMES + BY_CLASS


def test_precision_and_recall_of_an_example_computed_by_hand():
    scores = np.array([[0.9, 0.6, 0.1], [0.8, 0.4, 0.5], [0.2, 0.7, 0.49]])
    targets = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0]])
    # The classes have 1, 1, 1 true positives, 2, 2, 1 predictions and 2, 2, 2 positives.
    metrics = evaluate(scores, targets)
    assert metrics["CP"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert metrics["CR"] == pytest.approx(1 / 2)
    assert metrics["CF1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert metrics["OP"] == pytest.approx(3 / 5)
    assert metrics["OR"] == pytest.approx(3 / 6)
    assert metrics["OF1"] == pytest.approx(2 * 0.6 * 0.5 / 1.1)
    assert [metrics[name] for name in BY_CLASS[:3]] == [[2, 2, 2], [2, 2, 1], [1, 1, 1]]
    assert metrics["precision"] == [1 / 2, 1 / 2, 1]
    assert metrics["recall"] == [1 / 2, 1 / 2, 1 / 2]
    assert metrics["F1"] == pytest.approx([1 / 2, 1 / 2, 2 / 3])


def test_each_class_can_have_its_own_threshold():
    scores, targets = np.array([[0.9, 0.2], [0.6, 0.1]]), np.array([[1, 1], [0, 0]])
    metrics = evaluate(scores, targets, threshold=np.array([0.7, 0.15]))
    assert [metrics[name] for name in ("CP", "CR", "OF1_3", "predicted")] == [1, 1, 1, [1, 1]]
    assert evaluate(scores, targets, threshold=np.array([0.5, 0.5])) == evaluate(scores, targets)
    assert evaluate(scores, targets)["predicted"] == [2, 0]
    assert evaluate(scores, targets)["F1"] == [pytest.approx(2 / 3), 0]


def test_the_report_shows_each_class_and_takes_metrics_of_older_runs():
    metrics = evaluate(np.array([[0.9, 0.2], [0.6, 0.8]]), np.array([[1, 1], [0, 0]]))
    report = format_report(metrics, ["cat", "dog"]).splitlines()
    assert report[0].split() == [
        "class",
        "AP",
        "positives",
        "predicted",
        "correct",
        "precision",
        "recall",
        "F1",
    ]
    assert report[1].split() == ["cat", "100.00", "1", "2", "1", "50.00", "100.00", "66.67"]
    assert report[2].split() == ["dog", "50.00", "1", "1", "0", "0.00", "0.00", "0.00"]
    older = {name: value for name, value in metrics.items() if name not in BY_CLASS}
    assert format_report(older, ["cat", "dog"]).splitlines()[1].split() == ["cat", "100.00"]


def test_the_report_of_an_example():
    scores = np.array([[0.9, 0.2, 0.7, 0.6], [0.6, 0.8, 0.1, 0.9]])
    targets = np.array([[1, 1, 1, 1], [0, 0, 0, 0]])
    metrics = evaluate(scores, targets, np.array([[False, False, True, False], [False] * 4]))
    assert format_report(metrics, ["cat", "a long name", "cow", "dog"]).splitlines() == [
        "class            AP  positives  predicted    correct  precision     recall         F1",
        "cat          100.00          1          2          1      50.00     100.00      66.67",
        "a long name   50.00          1          1          0       0.00       0.00       0.00",
        "dog           50.00          1          2          1      50.00     100.00      66.67",
        "no positives, so left out of mAP, and 0 in CP and CR: cow",
        "all    CP  25.00  CR  50.00  CF1  33.33  OP  40.00  OR  66.67  OF1  50.00",
        "top-3  CP  25.00  CR  50.00  CF1  33.33  OP  40.00  OR  66.67  OF1  50.00",
        "mAP 66.6667 %",
    ]


def f1_at(threshold: float, scores: np.ndarray, positives: np.ndarray) -> float:
    return precision_recall_fscore_support(
        positives, scores >= threshold, average="binary", zero_division=0, pos_label=True
    )[2]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans(), images=st.integers(1, 30))
def test_no_threshold_has_a_better_f1_than_the_fitted_one(seed, ties, images):
    rng = np.random.default_rng(seed)
    scores, positives, counted = rng.random(images), rng.random(images) < 0.4, rng.random(images) < 0.8
    if ties:
        scores = scores.round(1)
    positives &= counted
    fitted = best_threshold(scores, positives, counted)
    if not positives.any():
        assert math.isnan(fitted)
        return
    scores, positives = scores[counted], positives[counted]
    best = max(f1_at(score, scores, positives) for score in scores)
    assert f1_at(fitted, scores, positives) == pytest.approx(best, abs=1e-12)
    higher = [s for s in scores if s > fitted]
    assert all(f1_at(s, scores, positives) < best + 1e-12 for s in higher)


@pytest.mark.parametrize(
    ("positives", "counted", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 1, 1], 0.6),
        ([0, 0, 0, 1], [1, 1, 1, 1], 0.3),  # there is no lower score
        ([1, 0, 0, 1], [1, 1, 1, 1], 0.8),  # F1 is 2/3 for one prediction and for four
        ([0, 1, 0, 0], [0, 1, 0, 1], 0.5),  # ignored images are neither predictions nor the next lower score
    ],
)
def test_a_fitted_threshold_lies_between_two_scores_and_is_the_highest_of_equal_ones(
    positives, counted, expected
):
    scores = np.array([0.9, 0.7, 0.5, 0.3])
    fitted = best_threshold(scores, np.array(positives, bool), np.array(counted, bool))
    assert fitted == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.8, -np.inf], 0.8),  # halfway would be -inf, which takes all
        ([np.inf, 0.5], np.inf),
        ([np.inf, -np.inf], np.inf),
        ([-np.inf, -np.inf], -np.inf),
        ([np.nextafter(1, 2), 1.0], np.nextafter(1, 2)),
        ([1.7e308, 1.6e308], 1.7e308),  # their sum is too large for a float
    ],
)
def test_a_threshold_is_fitted_to_scores_without_a_number_halfway(scores, expected):
    assert best_threshold(np.array(scores), np.array([True, False]), np.array([True, True])) == expected


def test_top_3_counts_only_predicted_labels_among_the_three_highest():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.1], [0.9, 0.4, 0.3, 0.2, 0.1]])
    targets = np.array([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    metrics = evaluate(scores, targets)
    # Image 0 keeps classes 0, 1, 2 and loses 3. Image 1 keeps only class 0: its other scores are below 0.5.
    assert metrics["OP_3"] == pytest.approx(3 / 4)
    assert metrics["OR_3"] == pytest.approx(3 / 5)
    assert metrics["CP_3"] == pytest.approx((1 / 2 + 1 + 1 + 0 + 0) / 5)
    assert metrics["CR_3"] == pytest.approx((1 + 1 / 2 + 1 + 0 + 0) / 5)
    assert metrics["OP"] == pytest.approx(4 / 5)


def test_ignored_labels_change_no_metric():
    scores = np.array([[0.9, 0.8], [0.7, 0.6], [0.2, 0.9]])
    targets = np.array([[1, 0], [0, 1], [1, 1]])
    ignore = np.array([[False, True], [True, False], [False, False]])
    metrics = evaluate(scores, targets, ignore)
    # Class 0 keeps images 0 and 2, class 1 keeps images 1 and 2; all of these are positive.
    assert metrics["AP"] == [1, 1]
    assert metrics["OP"] == 1
    assert metrics["OR"] == pytest.approx(3 / 4)
    targets[ignore] = 99
    assert evaluate(scores, targets, ignore) == metrics


def test_the_first_of_equal_scores_is_among_the_three_highest():
    scores = np.full((1, 5), 0.7)
    counts = evaluate(scores, np.array([[1, 1, 1, 1, 1]]))
    assert (counts["OR"], counts["OR_3"]) == (1, 3 / 5)
    assert evaluate(scores, np.array([[1, 0, 0, 0, 0]]))["OR_3"] == 1
    assert evaluate(scores, np.array([[0, 0, 0, 1, 1]]))["OR_3"] == 0


def test_scores_of_minus_infinity_are_among_the_three_highest():
    metrics = evaluate(np.full((1, 5), -np.inf), np.ones((1, 5)), np.array([[1, 0, 0, 0, 0]]), -np.inf)
    assert metrics["OR_3"] == 3 / 4


def test_images_with_fewer_than_three_counted_labels_predict_no_ignored_one():
    scores, targets = np.array([[0.6, 0.9, 0.9, 0.9]]), np.array([[1, 1, 1, 1]])
    metrics = evaluate(scores, targets, np.array([[False, True, True, True]]))
    assert (metrics["OP_3"], metrics["OR_3"], metrics["predicted"]) == (1, 1, [1, 0, 0, 0])


def test_ignored_labels_are_not_among_the_three_highest():
    scores, targets = np.array([[0.9, 0.8, 0.7, 0.6]]), np.array([[0, 1, 1, 1]])
    metrics = evaluate(scores, targets, np.array([[True, False, False, False]]))
    assert (metrics["OP_3"], metrics["OR_3"]) == (1, 1)


def average_precision(pairs: list[tuple[float, int]]) -> float:
    """AP of (score, target) pairs without equal scores: the mean precision at the rank of each positive."""
    hits, precisions = 0, []
    for rank, (_, target) in enumerate(sorted(pairs, reverse=True), start=1):
        if target == 1:
            hits += 1
            precisions.append(hits / rank)
    return sum(precisions) / len(precisions)


def ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def as_the_authors_count_on_wider(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of labels 1, 0 and 99 (unspecified): mAP leaves 99 out, all others take it as 0."""
    images, classes = range(len(scores)), range(scores.shape[1])
    by_class = [[(scores[n, c], labels[n, c]) for n in images if labels[n, c] != 99] for c in classes]
    metrics = {"mAP": sum(map(average_precision, by_class)) / len(classes)}
    negative_if_unspecified = np.where(labels == 99, 0, labels)
    for suffix, limit in (("", len(classes)), ("_3", 3)):
        hits, predicted, positives = (np.zeros(len(classes)) for _ in range(3))
        for n in images:
            for place, c in enumerate(sorted(classes, key=lambda c: -scores[n, c])):
                if place < limit and scores[n, c] >= 0.5:
                    predicted[c] += 1
                    hits[c] += negative_if_unspecified[n, c]
                positives[c] += negative_if_unspecified[n, c]
        cp = sum(map(ratio, hits, predicted)) / len(classes)
        cr = sum(map(ratio, hits, positives)) / len(classes)
        op, recall = ratio(sum(hits), sum(predicted)), ratio(sum(hits), sum(positives))
        values = (cp, cr, ratio(2 * cp * cr, cp + cr), op, recall, ratio(2 * op * recall, op + recall))
        metrics |= {name + suffix: v for name, v in zip(("CP", "CR", "CF1", "OP", "OR", "OF1"), values)}
    return metrics


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(2, 20), classes=st.integers(1, 6))
def test_unspecified_labels_count_as_the_authors_count_them_on_wider(seed, images, classes):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(images * classes).reshape(images, classes) / (images * classes)
    labels = rng.choice([0, 1, 99], (images, classes))
    labels[0] = 1  # each class has a positive
    expected = as_the_authors_count_on_wider(scores, labels)
    metrics = evaluate(scores, labels == 1, labels == 99, unknown_is_negative=True)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(metrics) - set(expected) == {"AP", *BY_CLASS}
    assert np.mean([metrics["precision"], metrics["recall"]], axis=1) == pytest.approx(
        [metrics["CP"], metrics["CR"]], abs=1e-12
    )


def test_unknown_labels_as_negatives_change_all_metrics_but_map():
    scores, targets = np.array([[0.9, 0.8, 0.7, 0.6]]), np.array([[0, 1, 1, 1]])
    ignore = np.array([[True, False, False, False]])
    dropped, negative = (
        evaluate(scores, targets, ignore, unknown_is_negative=flag) for flag in (False, True)
    )
    assert [dropped[name] for name in ("mAP", "OP", "OP_3", "OR_3")] == [1, 1, 1, 1]
    assert [negative[name] for name in ("mAP", "OP", "OP_3", "OR_3")] == [1, 3 / 4, 2 / 3, 2 / 3]


def test_map_leaves_out_a_class_without_positives():
    metrics = evaluate(np.array([[0.9, 0.9], [0.1, 0.8]]), np.array([[1, 0], [0, 0]]))
    assert metrics["AP"][0] == 1
    assert math.isnan(metrics["AP"][1])
    assert metrics["mAP"] == 1
    assert metrics["CP"] == 0.5
    assert metrics["CR"] == 0.5
    report = format_report(metrics, ["cat", "dog"])
    assert "no positives, so left out of mAP, and 0 in CP and CR: dog" in report


def test_without_any_positives_map_is_nan():
    metrics = evaluate(np.array([[0.9, 0.2]]), np.array([[0, 0]]))
    assert math.isnan(metrics["mAP"])
    assert all(metrics[name] == 0 for name in NAMES[2:])


def test_without_any_predictions_precision_and_recall_are_zero():
    metrics = evaluate(column(0.4, 0.3), column(1, 0))
    assert metrics["mAP"] == 1
    assert all(metrics[name] == 0 for name in NAMES[2:])


def test_a_single_image_can_be_evaluated():
    metrics = evaluate(np.array([[0.7, 0.2]]), np.array([[1, 0]]))
    assert (metrics["mAP"], metrics["OF1"]) == (1, 1)


def test_scores_may_be_integers_booleans_or_infinite():
    targets = column(0, 1, 1)
    for scores in (np.array([[0], [1], [1]], np.uint8), np.array([[False], [True], [True]])):
        assert evaluate(scores, targets)["mAP"] == 1
    assert evaluate(column(-math.inf, math.inf, math.inf), targets)["mAP"] == 1
    assert evaluate(column(math.inf, math.inf), column(1, 0))["mAP"] == 0.5


def test_a_score_equal_to_the_threshold_is_predicted():
    assert evaluate(column(0.5), column(1))["OR"] == 1


def test_equal_scores_share_the_lowest_rank():
    assert evaluate(column(0.5, 0.5), column(1, 0))["mAP"] == 0.5
    assert evaluate(column(0.5, 0.5), column(0, 1))["mAP"] == 0.5
    assert evaluate(column(0.9, 0.5, 0.5, 0.5), column(1, 1, 0, 0))["mAP"] == pytest.approx((1 + 2 / 4) / 2)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), ties=st.booleans(), images=st.integers(1, 40), classes=st.integers(1, 6)
)
def test_metrics_match_scikit_learn(seed, ties, images, classes):
    rng = np.random.default_rng(seed)
    scores = rng.random((images, classes))
    if ties:
        scores = scores.round(1)
    targets = rng.integers(0, 2, (images, classes))
    metrics = evaluate(scores, targets)
    for c in range(classes):
        if targets[:, c].any():
            assert metrics["AP"][c] == pytest.approx(
                average_precision_score(targets[:, c], scores[:, c]), abs=1e-12
            )
        else:
            assert math.isnan(metrics["AP"][c])
    predicted = scores >= 0.5
    for letter, average in (("C", "macro"), ("O", "micro")):
        precision, recall, *_ = precision_recall_fscore_support(
            targets.reshape(images, -1) if classes > 1 else targets[:, 0],
            predicted if classes > 1 else predicted[:, 0],
            average=average if classes > 1 else "binary",
            zero_division=0,
        )
        assert metrics[f"{letter}P"] == pytest.approx(precision, abs=1e-12)
        assert metrics[f"{letter}R"] == pytest.approx(recall, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_images_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    scores, targets = rng.random((20, 3)).round(1), rng.integers(0, 2, (20, 3))
    ignore = rng.random((20, 3)) < 0.2
    order = rng.permutation(20)
    a, b = evaluate(scores, targets, ignore), evaluate(scores[order], targets[order], ignore[order])
    for name in NAMES:
        np.testing.assert_allclose(a[name], b[name], atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "targets", "ignore", "says"),
    [
        ([[0.1, math.nan]], [[1, 0]], None, "NaN for 1 of 1 images, first for image 0"),
        ([[0.1, 0.2]], [[1, 2]], None, "0 or 1"),
        ([[0.1, 0.2]], [[1]], None, "one shape"),
        ([[0.1, 0.2]], [[1, 0]], [[True]], "one shape"),
        ([0.1, 0.2], [1, 0], None, "one shape"),
        (np.zeros((0, 3)), np.zeros((0, 3)), None, "nothing to evaluate"),
    ],
)
def test_invalid_input_raises_an_error(scores, targets, ignore, says):
    with pytest.raises(ValueError, match=says):
        evaluate(np.array(scores), np.array(targets), None if ignore is None else np.array(ignore))


def random_labels(images: int, classes: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.random((images, classes)).astype(dtype)
    return scores, (rng.random((images, classes)) < 0.05).astype(np.int8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("images", "classes"), [(10_000, 80), (4952, 20), (100, 5000)])
def test_metrics_need_less_memory_than_their_scores(images, classes, dtype):
    scores, targets = random_labels(images, classes, dtype)
    ignore = targets > 1
    tracemalloc.start()
    try:
        evaluate(scores, targets)
        evaluate(scores, targets, ignore, np.full(classes, 0.3), unknown_is_negative=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < scores.nbytes


@pytest.mark.parametrize("threshold", [0.7, np.linspace(0.1, 0.9, 30)], ids=["one", "by class"])
def test_float32_scores_have_the_metrics_of_their_float64_copies(threshold):
    scores, targets = random_labels(1000, 30, np.float32)  # several blocks of images, and of classes
    scores[0] = threshold  # rounded in float32, some of them down
    assert (scores[0].astype(float) < threshold).any()
    ignore = np.random.default_rng(1).random(scores.shape) < 0.1
    expected = evaluate(scores.astype(float), targets, ignore, threshold)
    assert evaluate(scores, targets, ignore, threshold) == expected
    for first in range(0, 30, 7):  # classes do not depend on each other
        part = slice(first, first + 7)
        assert evaluate(scores[:, part], targets[:, part], ignore[:, part])["AP"] == expected["AP"][part]
