"""Print the metrics of saved scores, or fit thresholds to them. `evaluate` is the Python API of the metrics.

python utils/evaluation.py FILE.npz [--threshold 0.5] [--fit_thresholds FILE.json]
python utils/evaluation.py FIRST.npz SECOND.npz
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

from utils.metrics.bootstrap import Ranking, Resamples, bootstrap, intervals, join_blocks, rank_classes
from utils.metrics.comparison import (
    compare,
    comparison_results,
    format_comparison,
    format_interval,
    is_comparison_file,
)
from utils.metrics.multilabel import evaluate
from utils.metrics.pairing import in_same_order
from utils.metrics.report import by_class, format_report, is_metrics_file
from utils.metrics.score_files import SavedScores, read_scores
from utils.metrics.thresholds import fit_thresholds, read_thresholds, threshold, write_thresholds
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.errors import UserError, one_line
from utils.runtime.files import nan_to_none, write_json
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.progress import progress_bar
from utils.runtime.script import run_script

__all__ = ["evaluate"]


def main() -> None:
    args = parse_args()
    if args.second is None:
        report_metrics(args)
    else:
        report_difference(args)


def report_metrics(args: argparse.Namespace) -> None:
    """Print and write the metrics of one file."""
    saved = read_scores(args.file)
    used = choose_threshold(args.threshold, {args.file: saved})
    thresholds = read_thresholds(used, saved.names)
    if args.fit_thresholds:
        used = args.fit_thresholds
        thresholds = fit_thresholds(saved.scores, saved.positives, saved.counted, otherwise=thresholds)
        write_thresholds(used, thresholds, saved.names)
        print(f"written to {used}: fitted to these images, so evaluate it on others")
    metrics = saved.evaluate(thresholds)
    results = by_class(metrics, saved.names)
    heading = f"{len(saved.scores)} images, threshold {used}"
    if args.resamples > 0 and not math.isnan(metrics["mAP"]):
        (resamples,) = resample([rank_classes(saved, thresholds)], len(saved.scores), args)
        bounds = intervals(resamples, metrics)
        heading += f", mAP {100 * metrics['mAP']:.2f} (95 % interval {format_interval(bounds['mAP'])})"
        results["intervals"] = by_class(bounds, saved.names)
        results |= {"resamples": args.resamples, "seed": args.seed}
    print(heading)
    print(format_report(metrics, [one_line(name) for name in saved.names]))
    if args.out:
        write_json(args.out, nan_to_none(results))


def report_difference(args: argparse.Namespace) -> None:
    """Print and write how the second file differs from the first."""
    files = [args.file, args.second]
    first = read_scores(args.file)
    second = in_same_order(first, read_scores(args.second), files)
    if not first.positives.any():
        raise UserError(f"{args.file}: no class has a positive, so there is no mAP to compare")
    used = choose_threshold(args.threshold, {args.file: first, args.second: second})
    thresholds = read_thresholds(used, first.names)
    rankings = [rank_classes(first, thresholds), rank_classes(second, thresholds)]
    before, after = resample(rankings, len(first.scores), args)
    metrics = [first.evaluate(thresholds), second.evaluate(thresholds)]
    comparison = compare(metrics, [before, after])
    if args.out:
        results = comparison_results(comparison, first.names, files)
        results |= {"resamples": args.resamples, "seed": args.seed}
        write_json(args.out, nan_to_none(results))
    print(f"{len(first.scores)} images, threshold {used}, {args.resamples} resamples")
    print(f"a: {args.file}\nb: {args.second}")
    print(format_comparison(comparison, first.names))


def resample(rankings: list[list[Ranking]], num_images: int, args: argparse.Namespace) -> list[Resamples]:
    """Return the metrics of the scores of each file on the same resamples of the images."""
    blocks = []
    with progress_bar(args.resamples, "bootstrap", unit="resample") as bar:
        for block in bootstrap(rankings, num_images, args.resamples, args.seed):
            blocks.append(block)
            bar.update(len(block[0]["mAP"]))
    return [join_blocks(of_one_file) for of_one_file in zip(*blocks)]


def parse_args() -> argparse.Namespace:
    parser = Parser("Print the metrics of scores that val.py --save_scores or another program wrote.")
    arrays = "arrays scores, targets (N, C); optionally ignore, names, paths and unknown_is_negative"
    parser.add_argument("file", type=given_path, metavar="FILE.npz", help=arrays)
    second_help = "scores of another model for the same images: print the difference, second minus first"
    parser.add_argument("second", type=given_path, nargs="?", metavar="SECOND.npz", help=second_help)
    threshold_help = "lowest score that is a prediction, or a .json file with one per class [default: 0.5]"
    any_number = functools.partial(threshold, low=-math.inf, high=math.inf)
    parser.add_argument("--threshold", type=any_number, metavar="NUMBER|FILE", help=threshold_help)
    fit_help = "write each class's threshold with the best F1, else --threshold, to this .json, and use it"
    parser.add_argument("--fit_thresholds", type=given_path, metavar="FILE", help=fit_help)
    resamples_help = (
        "how often the images are drawn again for the 95 %% intervals; 0: no interval, of one file"
    )
    parser.add_argument("--resamples", type=number(int, 0), default=1000, help=resamples_help)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of these draws")
    out_help = "write the metrics, or the difference, to this JSON file"
    parser.add_argument("--out", type=given_path, metavar="FILE", help=out_help)
    args = parser.parse_args()
    check_output_files(args)
    return args


def check_output_files(args: argparse.Namespace) -> None:
    """Raise UserError if an output cannot be written, or does not go with the other arguments."""
    check_file(args.fit_thresholds, "--fit_thresholds", ".json")
    check_file(args.out, "--out")
    if args.out and args.out == args.fit_thresholds:
        raise UserError(f"--out and --fit_thresholds are both {args.out}: name two files")
    if args.second is None:
        check_replaceable(args.out, "--out", is_metrics_file, "utils/evaluation.py with one file")
        return
    check_replaceable(args.out, "--out", is_comparison_file, "utils/evaluation.py with two files")
    if args.fit_thresholds:
        raise UserError(
            f"--fit_thresholds {args.fit_thresholds} takes one file of scores: leave {args.second} out"
        )
    if args.resamples == 0:
        raise UserError("--resamples 0 leaves two files without an interval: give at least 1")


def choose_threshold(given: float | Path | None, files: dict[Path, SavedScores]) -> float | Path:
    """Return the given threshold, or 0.5 if there is none; UserError for 0.5 if scores leave [0, 1]."""
    if given is not None:
        return given
    for file, saved in files.items():
        lowest, highest = saved.scores.min(), saved.scores.max()
        if lowest < 0 or highest > 1:
            raise UserError(f"{file}: scores from {lowest:g} to {highest:g} need a --threshold")
    return 0.5


if __name__ == "__main__":
    run_script(main)
