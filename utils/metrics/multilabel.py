"""The metrics of the paper's tables: average precision by class, and precision, recall and F1."""

import math
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

import numpy as np

from utils.metrics.blocks import ArrayLabels, ArrayScores, LabelBlocks, Scores

BLOCK_ELEMENTS = 2**16  # of a block of images: it stays in the processor's cache
MAX_BLOCK_CLASSES = 8  # float64 scores of 8 neighbouring classes are one cache line
MIN_BLOCKS = 8  # so that a block takes an eighth of the memory of the scores


class Metrics(TypedDict):
    """What `evaluate` returns: fractions in [0, 1], and for lists one value for each class.

    C: mean over the classes. O: over all labels together. _3: only an image's three highest scores count.
    """

    mAP: float  # NaN if no class has positives
    AP: list[float]  # NaN for a class without positives
    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float
    CP_3: float
    CR_3: float
    CF1_3: float
    OP_3: float
    OR_3: float
    OF1_3: float
    positives: list[int]
    predicted: list[int]
    correct: list[int]
    precision: list[float]
    recall: list[float]
    F1: list[float]


class Counts(NamedTuple):
    """The numbers of labels of each class: of positives, of predictions, and of correct predictions; (C,)."""

    positives: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray


class Rates(NamedTuple):
    """Precision, recall and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def evaluate(
    scores: np.ndarray,
    targets: np.ndarray,
    ignore: np.ndarray | None = None,
    threshold: float | np.ndarray = 0.5,
    unknown_is_negative: bool = False,
) -> Metrics:
    """Compute the metrics of scores (N, C) against targets (N, C) of 0 and 1.

    ignore: (N, C) bool or None; ignored labels count in no metric. With unknown_is_negative they count as
    negative in all metrics but mAP and AP, as the authors do for WIDER. An ignored label takes no place in
    the top 3. In the authors' code VOC's difficult labels take one, but they never print these metrics.
    threshold: a number or (C,); a label is predicted if its score is at least its threshold.
    AP is the mean, over the positives of a class, of the precision at the rank of each. mAP is the mean over
    the classes that have positives. Precision without predictions and recall without positives are 0.
    The arrays are read in blocks, and float32 scores are not copied to float64.
    Raises ValueError for other shapes or targets, for no images and for NaN scores.
    """
    scores = np.asarray(scores)
    if scores.dtype.kind != "f":
        scores = scores.astype(float)
    targets = np.asarray(targets)
    ignore = np.broadcast_to(False, targets.shape) if ignore is None else np.asarray(ignore, bool)
    check_inputs(scores, targets, ignore)
    labels = ArrayLabels(targets, ignore)
    return evaluate_blocks(ArrayScores(scores), labels, threshold, unknown_is_negative)


def evaluate_blocks(
    scores: Scores, labels: LabelBlocks, threshold: float | np.ndarray, unknown_is_negative: bool
) -> Metrics:
    """Compute the metrics of `evaluate` for scores and labels of one shape; no score may be NaN."""
    aps = average_precisions(scores, labels)
    # An array, because NumPy would round a Python number to the precision of float32 scores.
    thresholds = np.broadcast_to(np.asarray(threshold, float), scores.shape[1:])
    counts, counts_3 = count_labels(scores, labels, thresholds, unknown_is_negative)
    per_class = mean_rates(counts)
    overall = overall_rates(counts)
    per_class_3 = mean_rates(counts_3)
    overall_3 = overall_rates(counts_3)
    return Metrics(
        mAP=float(np.nanmean(aps)) if counts.positives.any() else math.nan,
        AP=aps,
        CP=per_class.precision,
        CR=per_class.recall,
        CF1=per_class.f1,
        OP=overall.precision,
        OR=overall.recall,
        OF1=overall.f1,
        CP_3=per_class_3.precision,
        CR_3=per_class_3.recall,
        CF1_3=per_class_3.f1,
        OP_3=overall_3.precision,
        OR_3=overall_3.recall,
        OF1_3=overall_3.f1,
        positives=counts.positives.tolist(),
        predicted=counts.predicted.tolist(),
        correct=counts.correct.tolist(),
        precision=share(counts.correct, counts.predicted).tolist(),
        recall=share(counts.correct, counts.positives).tolist(),
        F1=share(2 * counts.correct, counts.predicted + counts.positives).tolist(),
    )


def check_inputs(scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray) -> None:
    """Raise ValueError unless the arrays have one shape (N, C), no score is NaN and targets are 0 or 1."""
    if scores.ndim != 2 or not (scores.shape == targets.shape == ignore.shape):
        shapes = f"{scores.shape}, {targets.shape} and {ignore.shape}"
        raise ValueError(f"scores, targets and ignore must have one shape (N, C), not {shapes}")
    if scores.size == 0:
        raise ValueError(f"there is nothing to evaluate: scores have shape {scores.shape}")
    check_no_nan(ArrayScores(scores))
    for images in image_blocks(scores.shape):
        block = targets[images]
        if not ((block == 0) | (block == 1) | ignore[images]).all():
            raise ValueError("targets must be 0 or 1 where they are not ignored")


def check_no_nan(scores: Scores) -> None:
    """Raise ValueError if a score is NaN."""
    blocks = image_blocks(scores.shape)
    is_nan = np.concatenate([np.isnan(scores.of_images(images)).any(axis=1) for images in blocks])
    if is_nan.any():
        which = f"{is_nan.sum()} of {len(is_nan)} images, first for image {is_nan.argmax()}"
        raise ValueError(f"scores are NaN for {which}")


def image_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Divide the images of arrays (N, C) into blocks."""
    num_images, num_classes = shape
    size = max(1, min(BLOCK_ELEMENTS // num_classes, num_images // MIN_BLOCKS))
    for start in range(0, num_images, size):
        yield slice(start, start + size)


def class_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Divide the classes of arrays (N, C) into blocks."""
    num_classes = shape[1]
    size = min(MAX_BLOCK_CLASSES, max(1, num_classes // MIN_BLOCKS))
    for start in range(0, num_classes, size):
        yield slice(start, start + size)


def average_precisions(scores: Scores, labels: LabelBlocks) -> list[float]:
    """Compute the average precision of each class."""
    results = []
    for classes in class_blocks(scores.shape):
        # Sorting is faster on the scores of a class that lie next to each other in memory.
        block_scores = scores.of_classes(classes)
        positives, known = labels.of_classes(classes)
        results += [average_precision(*rows) for rows in zip(block_scores, positives, known)]
    return results


def average_precision(scores: np.ndarray, positives: np.ndarray, known: np.ndarray) -> float:
    """Compute a class's mean precision at the ranks of its positives, from arrays (N,); NaN without any.

    The rank of a score is the number of scores that are at least as high, as in scikit-learn.
    """
    positive_scores = np.sort(scores[positives])
    if len(positive_scores) == 0:
        return math.nan
    lowest = positive_scores[0]
    ranked_scores = np.sort(scores[known & (scores >= lowest)])  # lower scores change no rank
    hits = num_at_least(positive_scores, positive_scores)
    ranks = num_at_least(positive_scores, ranked_scores)
    return float(np.mean(hits / ranks))


def num_at_least(values: np.ndarray, sorted_scores: np.ndarray) -> np.ndarray:
    """Count, for each of the values (K,), the scores that are at least as high; the scores ascend."""
    return len(sorted_scores) - np.searchsorted(sorted_scores, values)


def three_highest(scores: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return where the three highest counted scores of each image are, bool (N, C).

    Of equal scores the first is taken. With fewer than three counted scores, others are taken too.
    """
    images = np.arange(len(scores))
    lowest = np.finfo(float).min  # in place of -∞, which marks what is not counted or already chosen
    remaining = np.where(counted, np.maximum(scores, lowest), -np.inf)
    chosen = np.zeros(scores.shape, bool)
    for _ in range(3):
        highest = remaining.argmax(axis=1)
        chosen[images, highest] = True
        remaining[images, highest] = -np.inf
    return chosen


def count_labels(
    scores: Scores, labels: LabelBlocks, thresholds: np.ndarray, unknown_is_negative: bool
) -> tuple[Counts, Counts]:
    """Count the labels of each class, with all predictions and with those of the top 3; thresholds: (C,)."""
    num_classes = scores.shape[1]
    totals = np.zeros((5, num_classes), int)
    for images in image_blocks(scores.shape):
        block_scores = scores.of_images(images)
        positives, known = labels.of_images(images)
        counted = known | unknown_is_negative
        predicted = (block_scores >= thresholds) & counted
        predicted_3 = predicted & three_highest(block_scores, counted)
        kinds = (positives, predicted, predicted & positives, predicted_3, predicted_3 & positives)
        totals += [of_one_kind.sum(axis=0) for of_one_kind in kinds]
    positive, all_predicted, all_correct, top_predicted, top_correct = totals
    return Counts(positive, all_predicted, all_correct), Counts(positive, top_predicted, top_correct)


def mean_rates(counts: Counts) -> Rates:
    """Compute the means over the classes of precision and recall, and F1 of these means (CP, CR, CF1)."""
    precisions = share(counts.correct, counts.predicted)
    recalls = share(counts.correct, counts.positives)
    return with_f1(float(precisions.mean()), float(recalls.mean()))


def overall_rates(counts: Counts) -> Rates:
    """Compute precision, recall and F1 of the labels of all classes together (OP, OR, OF1)."""
    correct = counts.correct.sum()
    precision = share(correct, counts.predicted.sum())
    recall = share(correct, counts.positives.sum())
    return with_f1(float(precision), float(recall))


def with_f1(precision: float, recall: float) -> Rates:
    """Return precision and recall with their harmonic mean, which is 0 if both are 0."""
    if precision + recall == 0:
        return Rates(precision, recall, 0.0)
    return Rates(precision, recall, 2 * precision * recall / (precision + recall))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole for counts, and 0 where the whole is 0."""
    return part / np.maximum(whole, 1)
