"""Thresholds: the lowest score that is a prediction, one number for all classes or one for each."""

import argparse
import contextlib
import functools
import math
import os
from pathlib import Path

import numpy as np

from utils.data.lookalikes import compose
from utils.metrics.multilabel import num_at_least
from utils.runtime.arguments import given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import read_json, write_json
from utils.runtime.output_checks import check_replaceable


def threshold(text: str, low: float = 0, high: float = 1) -> float | Path:
    """Parse a threshold from low to high, or the .json file with one per class; an argparse type."""
    if text.endswith(".json"):
        return given_path(text)
    with contextlib.suppress(ValueError):
        value = float(text)
        if low <= value <= high:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}, nor a .json file")


def read_thresholds(given: float | str | os.PathLike[str], names: list[str]) -> np.ndarray:
    """Return the thresholds (C,) of C classes: one number for all, or a file of {class: threshold}.

    Raises UserError if the file lacks a class or holds something else, or if a threshold is not finite.
    """
    if not isinstance(given, str | os.PathLike):
        if not math.isfinite(given):
            raise UserError(f"the threshold is {given}: give a finite number")
        return np.full(len(names), float(given))
    with reporting_errors(f"{given} must hold a threshold for each class"):
        values = {compose(name): value for name, value in read_json(Path(given)).items()}
        thresholds = np.array([float(values[compose(name)]) for name in names])
        for name, value in zip(names, thresholds):
            if not math.isfinite(value):
                raise ValueError(f"that of {name} is {value}")
    return thresholds


def write_thresholds(path: Path, thresholds: np.ndarray, names: list[str]) -> None:
    """Write thresholds (C,) as {class: threshold}.

    Raises UserError if the file exists and holds something else, or if a threshold is not finite.
    """
    for name, value in zip(names, thresholds):
        if not math.isfinite(value):
            raise UserError(f"--fit_thresholds: the threshold of {name} is {value}: use finite scores")
    is_own = functools.partial(holds_thresholds, names=names)
    author = "utils/evaluation.py, with a threshold for each class"
    check_replaceable(path, "--fit_thresholds", is_own, author)
    write_json(path, dict(zip(names, thresholds.tolist())))


def holds_thresholds(path: Path, names: list[str]) -> bool:
    """Return whether a file holds a threshold for each of some classes, and nothing else."""
    values = read_json(path)
    same_names = set(map(compose, values)) == set(map(compose, names))
    return same_names and not any(map(math.isnan, values.values()))


def fit_thresholds(
    scores: np.ndarray, positives: np.ndarray, counted: np.ndarray, otherwise: np.ndarray
) -> np.ndarray:
    """Return each class's threshold with the best F1, from arrays (N, C).

    otherwise: (C,), the thresholds of classes without positives.
    """
    fitted = np.array([best_threshold(*column) for column in zip(scores.T, positives.T, counted.T)])
    return np.where(np.isnan(fitted), otherwise, fitted)


def best_threshold(scores: np.ndarray, positives: np.ndarray, counted: np.ndarray) -> float:
    """Compute the threshold with the best F1 of a class, from arrays (N,); NaN without positives.

    If several thresholds are equally good, it is the highest.
    """
    # Only the scores of positives are tried: any threshold between two of them just adds errors.
    candidates = np.sort(scores[positives])
    if len(candidates) == 0:
        return math.nan
    ranked_scores = np.sort(scores[counted])
    num_correct = num_at_least(candidates, candidates)
    num_predicted = num_at_least(candidates, ranked_scores)
    f1 = 2 * num_correct / (num_predicted + len(candidates))
    best = float(candidates[f1 == f1.max()][-1])
    lower_scores = ranked_scores[ranked_scores < best]
    if len(lower_scores) == 0:
        return best
    # Halfway to the next lower score, because another device computes slightly different scores.
    lower = float(lower_scores[-1])
    halfway = (best + lower) / 2
    # There is no number halfway to -∞, nor between two numbers that are next to each other.
    return halfway if lower < halfway < best else best
