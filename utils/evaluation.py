"""Print the metrics of saved scores, or fit thresholds to them. `evaluate` is the Python API of the metrics.

python utils/evaluation.py FILE.npz [--threshold 0.5] [--fit_thresholds FILE.json]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import argparse
import functools
import math
from pathlib import Path

from utils.metrics.multilabel import evaluate
from utils.metrics.report import format_report
from utils.metrics.score_files import SavedScores, read_scores
from utils.metrics.thresholds import fit_thresholds, read_thresholds, threshold, write_thresholds
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, one_line
from utils.runtime.files import check_file
from utils.runtime.script import run_script

__all__ = ["evaluate"]


def main() -> None:
    args = parse_args()
    saved = read_scores(args.file)
    used = choose_threshold(args.threshold, saved, args.file)
    thresholds = read_thresholds(used, saved.names)
    if args.fit_thresholds:
        used = args.fit_thresholds
        thresholds = fit_thresholds(saved.scores, saved.positives, saved.counted, otherwise=thresholds)
        write_thresholds(used, thresholds, saved.names)
        print(f"written to {used}: fitted to these images, so evaluate it on others")
    metrics = evaluate(saved.scores, saved.targets, saved.ignore, thresholds, saved.unknown_is_negative)
    print(f"{len(saved.scores)} images, threshold {used}")
    print(format_report(metrics, [one_line(name) for name in saved.names]))


def parse_args() -> argparse.Namespace:
    parser = Parser("Print the metrics of scores that val.py --save_scores or another program wrote.")
    arrays = "arrays scores, targets (N, C); optionally ignore, names, paths and unknown_is_negative"
    parser.add_argument("file", type=given_path, metavar="FILE.npz", help=arrays)
    threshold_help = "lowest score that is a prediction, or a .json file with one per class [default: 0.5]"
    any_number = functools.partial(threshold, low=-math.inf, high=math.inf)
    parser.add_argument("--threshold", type=any_number, metavar="NUMBER|FILE", help=threshold_help)
    fit_help = "write each class's threshold with the best F1, else --threshold, to this .json, and use it"
    parser.add_argument("--fit_thresholds", type=given_path, metavar="FILE", help=fit_help)
    args = parser.parse_args()
    check_file(args.fit_thresholds, "--fit_thresholds", ".json")
    return args


def choose_threshold(given: float | Path | None, saved: SavedScores, file: Path) -> float | Path:
    """Return the given threshold, or 0.5 if there is none; UserError for 0.5 if scores leave [0, 1]."""
    if given is not None:
        return given
    lowest, highest = saved.scores.min(), saved.scores.max()
    if lowest < 0 or highest > 1:
        raise UserError(f"{file}: scores from {lowest:g} to {highest:g} need a --threshold")
    return 0.5


if __name__ == "__main__":
    run_script(main)
