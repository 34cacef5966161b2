"""Count how often the 95 % intervals of utils/evaluation.py hold the true mAP of simulated models.

python experiments/coverage.py [--sets 200] [--resamples 500] [--seed 0]
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.metrics.bootstrap import Interval, bootstrap, interval, join_blocks, rank_classes
from utils.metrics.score_files import SavedScores
from utils.runtime.arguments import Parser, number
from utils.runtime.script import run_script

NUM_CLASSES = 5
SHARED = 0.6  # correlation of the two models' scores: both find the same images hard


class Case(NamedTuple):
    """The size of a simulated test set, its share of positives, and how far each model separates them.

    A model's scores are normal with standard deviation 1, and their mean is higher by `separations` for
    positives.
    """

    num_images: int
    prevalence: float
    separations: tuple[float, float]


class Coverage(NamedTuple):
    """The shares of sets whose interval holds the true mAP of the first model, and the true difference."""

    mean_ap: float
    difference: float


CASES = [
    Case(500, 0.1, (1.5, 1.5)),
    Case(500, 0.1, (1.5, 1.7)),
    Case(1000, 0.1, (2.0, 2.1)),
    Case(2000, 0.04, (1.5, 1.6)),
]


def main() -> None:
    args = parse_args()
    print("| images | positives | true mAP, % | true difference | interval of mAP | of the difference |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        first, second = (true_average_precision(s, case.prevalence) for s in case.separations)
        coverage = measure_coverage(case, args.sets, args.resamples, args.seed)
        cells = [f"{case.num_images:,}", f"{case.prevalence:.0%}", f"{100 * first:.1f}"]
        cells += [f"{100 * (second - first):.1f}", f"{coverage.mean_ap:.1%}", f"{coverage.difference:.1%}"]
        print(f"| {' | '.join(cells)} |".replace("%", " %"), flush=True)


def parse_args() -> argparse.Namespace:
    parser = Parser("Count how often 95 % intervals hold the true mAP of simulated models.")
    parser.add_argument("--sets", type=number(int, 1), default=200, help="simulated test sets for each row")
    parser.add_argument("--resamples", type=number(int, 1), default=500, help="resamples of each set")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of all random numbers")
    return parser.parse_args()


def true_average_precision(separation: float, prevalence: float) -> float:
    """Return the average precision on endlessly many images, the same for every class."""
    scores = np.linspace(-9, 9 + separation, 4001)
    recall = share_above(scores - separation)
    false_positive_rate = share_above(scores)
    found = prevalence * recall
    precision = found / (found + (1 - prevalence) * false_positive_rate)
    density = np.exp(-((scores - separation) ** 2) / 2)  # of the scores of positives
    return float((precision * density).sum() / density.sum())


def share_above(values: np.ndarray) -> np.ndarray:
    """Return the probability that a standard normal number is above each value."""
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in values])


def measure_coverage(case: Case, num_sets: int, num_resamples: int, seed: int) -> Coverage:
    """Return how often the intervals of simulated sets hold the true values."""
    first, second = (true_average_precision(s, case.prevalence) for s in case.separations)
    held = []
    for index in range(num_sets):
        of_first, of_difference = simulated_intervals(case, num_resamples, (seed, index))
        held.append([holds(of_first, first), holds(of_difference, second - first)])
    return Coverage(*np.mean(held, axis=0).tolist())


def holds(bounds: Interval, value: float) -> bool:
    """Return whether a value lies in an interval."""
    return bounds.low <= value <= bounds.high


def simulated_intervals(case: Case, num_resamples: int, seed: tuple[int, int]) -> tuple[Interval, Interval]:
    """Return the intervals of the first model's mAP, and of the difference, on one simulated set."""
    rng = np.random.default_rng(seed)
    shape = (case.num_images, NUM_CLASSES)
    positives = rng.random(shape) < case.prevalence
    nowhere = np.zeros(shape, bool)
    shared = rng.normal(size=shape)
    rankings = []
    estimates = []
    for separation in case.separations:
        noise = math.sqrt(SHARED) * shared + math.sqrt(1 - SHARED) * rng.normal(size=shape)
        scores = separation * positives + noise
        saved = SavedScores(scores, positives, nowhere, [], [], unknown_is_negative=False)
        rankings.append(rank_classes(saved, np.zeros(NUM_CLASSES)))
        estimates.append(saved.evaluate(np.zeros(NUM_CLASSES))["mAP"])
    blocks = bootstrap(rankings, case.num_images, num_resamples, seed=int(rng.integers(2**32)))
    first, second = (join_blocks(of_one_model)["mAP"] for of_one_model in zip(*blocks))
    return interval(first, estimates[0]), interval(second - first)


if __name__ == "__main__":
    run_script(main)
