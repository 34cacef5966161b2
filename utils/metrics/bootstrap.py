"""How far metrics may be from those of other images: a bootstrap over the images.

A resample draws as many images as there are, with replacement, and is evaluated like them: an image that is
drawn n times counts n times. The interval of a metric comes from its values for many resamples (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993):

- For the difference of two models, which are evaluated on the same resamples, it holds the middle 95 % of
  the values: the percentile interval (section 13.3).
- For one model, this interval would be too high: the AP of few positives is, and that of a resample, which
  has fewer different ones, even more. So it is moved by this bias: BCa without acceleration (section 14.3).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from utils.metrics.multilabel import share
from utils.metrics.score_files import SavedScores

BLOCK_DRAWS = 2**18  # draws of a block of resamples: they stay in the processor's cache
NORMAL = NormalDist()
TAIL = NORMAL.inv_cdf(0.975)

Resamples = dict[str, np.ndarray]  # of R resamples: AP (R, C), and mAP, CF1, OF1 (R,); NaN without positives


class Interval(NamedTuple):
    """The bounds of a 95 % interval."""

    low: float
    high: float


class Ranking(NamedTuple):
    """The images of a class, ranked by score; equal scores with a positive among them form a group.

    images: (K,) rows of the known images, from the highest score to the lowest of a positive.
    starts: (G,) the place in `images` that follows the previous group, for each of G groups.
    positives: (P,) rows of the positives, ranked.
    positive_starts: (G,) the place in `positives` of the first positive of each group.
    predicted, correct: rows of the images that the class is predicted for, and of those with the label.
    """

    images: np.ndarray
    starts: np.ndarray
    positives: np.ndarray
    positive_starts: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray


def rank_classes(saved: SavedScores, thresholds: np.ndarray) -> list[Ranking]:
    """Rank the images of each class once, for all resamples; thresholds: (C,), see `evaluate`."""
    predicted = (saved.scores >= thresholds) & saved.counted
    columns = zip(saved.scores.T, saved.positives.T, ~saved.ignore.T, predicted.T)
    return [rank_class(*column) for column in columns]


def rank_class(
    scores: np.ndarray, positives: np.ndarray, known: np.ndarray, predicted: np.ndarray
) -> Ranking:
    """Rank the images of a class, from arrays (N,)."""
    images = np.flatnonzero(known)
    images = images[np.argsort(-scores[images], kind="stable")]
    ranked_scores = scores[images]
    is_positive = positives[images]
    is_last_of_equals = np.append(ranked_scores[1:] != ranked_scores[:-1], True)
    # Each image belongs to the first group that ends at its place or later.
    last_places = np.flatnonzero(is_last_of_equals)
    positive_places = np.flatnonzero(is_positive)
    ends = np.unique(last_places[np.searchsorted(last_places, positive_places)])
    num_groups = len(ends)
    num_ranked = ends[-1] + 1 if num_groups else 0
    positives_before = np.searchsorted(positive_places, ends[:-1], side="right")
    return Ranking(
        images=images[:num_ranked],
        starts=np.append(0, ends[:-1] + 1)[:num_groups],
        positives=images[positive_places],
        positive_starts=np.append(0, positives_before)[:num_groups],
        predicted=np.flatnonzero(predicted),
        correct=np.flatnonzero(predicted & positives),
    )


def bootstrap(
    sets: Sequence[list[Ranking]], num_images: int, num_resamples: int, seed: int
) -> Iterator[list[Resamples]]:
    """Yield the metrics of resamples block by block: for each block, those of every set of rankings.

    All sets have the same images, and are evaluated on the same resamples.
    """
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK_DRAWS // num_images)
    for start in range(0, num_resamples, size):
        draws = draw_images(rng, num_images, min(size, num_resamples - start))
        yield [evaluate_resamples(rankings, draws) for rankings in sets]


def draw_images(rng: np.random.Generator, num_images: int, num_resamples: int) -> np.ndarray:
    """Return how often each resample draws each image, (R, N) uint16."""
    draws = np.empty((num_resamples, num_images), np.uint16)
    for row in draws:
        row[:] = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
    return draws


def join_blocks(blocks: Sequence[Resamples]) -> Resamples:
    """Join the blocks of one set."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def evaluate_resamples(rankings: list[Ranking], draws: np.ndarray) -> Resamples:
    """Compute the metrics of resamples, as `evaluate` does for the images that they draw (R, N)."""
    aps = np.stack([average_precision_by_resample(ranking, draws) for ranking in rankings], axis=1)
    positives = np.stack([total(draws, ranking.positives) for ranking in rankings], axis=1)
    predicted = np.stack([total(draws, ranking.predicted) for ranking in rankings], axis=1)
    correct = np.stack([total(draws, ranking.correct) for ranking in rankings], axis=1)
    class_precision = share(correct, predicted).mean(axis=1)
    class_recall = share(correct, positives).mean(axis=1)
    overall_precision = share(correct.sum(axis=1), predicted.sum(axis=1))
    overall_recall = share(correct.sum(axis=1), positives.sum(axis=1))
    return {
        "mAP": mean_of_known(aps),
        "CF1": harmonic_mean(class_precision, class_recall),
        "OF1": harmonic_mean(overall_precision, overall_recall),
        "AP": aps,
    }


def average_precision_by_resample(ranking: Ranking, draws: np.ndarray) -> np.ndarray:
    """Compute the average precision of a class in each resample, (R,); NaN without positives."""
    if len(ranking.positives) == 0:
        return np.full(len(draws), np.nan)
    images_drawn = np.take(draws, ranking.images, axis=1)
    positives_drawn = np.take(draws, ranking.positives, axis=1)
    images_by_group = np.add.reduceat(images_drawn, ranking.starts, axis=1, dtype=np.int32)
    positives_by_group = np.add.reduceat(positives_drawn, ranking.positive_starts, axis=1, dtype=np.int32)
    hits = positives_by_group.cumsum(axis=1)
    ranks = images_by_group.cumsum(axis=1)
    sums = (positives_by_group * share(hits, ranks)).sum(axis=1)
    num_positives = hits[:, -1]
    return np.where(num_positives > 0, share(sums, num_positives), np.nan)


def total(draws: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Count how many of some images each resample draws, (R,)."""
    return np.take(draws, images, axis=1).sum(axis=1, dtype=int)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row (R, C) without its NaN; NaN where all are."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0).sum(axis=1)
    return np.where(known.any(axis=1), share(sums, known.sum(axis=1)), np.nan)


def harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of fractions, and 0 where both are 0."""
    both = a + b
    return 2 * a * b / np.where(both == 0, 1, both)


def interval(values: np.ndarray, estimate: float | None = None) -> Interval:
    """Return the 95 % interval from the values of resamples (R,), without their NaN; NaN if all are.

    estimate: the value for the images themselves, to correct the bias of the resamples; None: without.
    """
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Interval(math.nan, math.nan)
    bias = 0.0 if estimate is None else normal_bias(known, estimate)
    low, high = np.quantile(known, [NORMAL.cdf(2 * bias - TAIL), NORMAL.cdf(2 * bias + TAIL)])
    return Interval(float(low), float(high))


def normal_bias(values: np.ndarray, estimate: float) -> float:
    """Return by how many standard deviations the median of normal values lies below an estimate of them."""
    share_below = float(np.mean(values < estimate) + np.mean(values == estimate) / 2)
    smallest = 1 / (2 * len(values))  # if all values are on one side, as if half of one were on the other
    return NORMAL.inv_cdf(min(max(share_below, smallest), 1 - smallest))


def intervals(resamples: Resamples, estimates: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the interval of each metric, and for AP a list of them; estimates: see `interval`."""
    results: dict[str, Any] = {}
    for name, values in resamples.items():
        estimate = None if estimates is None else estimates[name]
        if values.ndim == 1:
            results[name] = interval(values, estimate)
        else:
            of_classes = [None] * values.shape[1] if estimate is None else estimate
            results[name] = [interval(*of_class) for of_class in zip(values.T, of_classes)]
    return results
