"""Precision against recall: a point for each score that a threshold may be."""

import math
from typing import NamedTuple

import numpy as np

from utils.metrics.multilabel import average_precision
from utils.metrics.score_files import SavedScores


class Curve(NamedTuple):
    """Precision against recall, arrays (1 + K,) as `precision_recall` returns them.

    average_precision: of a class; NaN for all labels together.
    """

    name: str
    recall: np.ndarray
    precision: np.ndarray
    average_precision: float


def class_curves(saved: SavedScores) -> list[Curve]:
    """Return the curve of each class that has positives, the best first."""
    curves = []
    columns = zip(saved.names, saved.scores.T, saved.positives.T, ~saved.ignore.T)
    for name, scores, positives, known in columns:
        if positives.any():
            recall, precision = precision_recall(scores[known], positives[known])
            curves.append(Curve(name, recall, precision, average_precision(scores, positives, known)))
    return sorted(curves, key=lambda curve: -curve.average_precision)


def overall_curve(saved: SavedScores) -> Curve:
    """Return the curve of all labels together."""
    recall, precision = precision_recall(saved.scores[saved.counted], saved.positives[saved.counted])
    return Curve("all labels together", recall, precision, math.nan)


def precision_recall(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision (1 + K,) from arrays (N,): at recall 0, then at each of K distinct scores.

    The scores go from the highest down to the first that reaches recall 1. Equal scores are predicted
    together.
    """
    order = np.argsort(-scores, kind="stable")
    ranked_scores = scores[order]
    num_correct = np.cumsum(positives[order])
    num_predicted = np.arange(1, len(scores) + 1)
    is_last_of_equals = np.append(ranked_scores[1:] != ranked_scores[:-1], True)
    recall = num_correct[is_last_of_equals] / positives.sum()
    precision = num_correct[is_last_of_equals] / num_predicted[is_last_of_equals]
    end = recall.searchsorted(1) + 1
    return np.append(0, recall[:end]), np.append(precision[0], precision[:end])
