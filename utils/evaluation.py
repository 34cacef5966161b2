"""Multi-label metrics in NumPy. Run as a script, this prints the metrics of saved scores.

python utils/evaluation.py FILE.npz [--threshold 0.5]
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.runtime.cli import Parser, UserError, given_path, number, one_line, run_script
from utils.scores import check_inputs, read_scores


def main() -> None:
    parser = Parser("Print the metrics of scores that val.py --save_scores or another program wrote.")
    arrays = "arrays scores and targets (N, C); optionally ignore (N, C), names (C,) and paths (N,)"
    parser.add_argument("file", type=given_path, metavar="FILE.npz", help=arrays)
    least = "lowest score that is a prediction [default: 0.5]"
    parser.add_argument("--threshold", type=number(float, -math.inf), help=least)
    args = parser.parse_args()
    scores, targets, ignore, names, _, unknown_is_negative = read_scores(args.file).values()
    if args.threshold is None and (scores.min() < 0 or scores.max() > 1):
        raise UserError(f"{args.file}: scores from {scores.min():g} to {scores.max():g} need a --threshold")
    threshold = 0.5 if args.threshold is None else args.threshold
    metrics = evaluate(scores, targets, ignore, threshold, unknown_is_negative)
    positives = ((targets == 1) & ~ignore).sum(axis=0).tolist()
    print(f"{len(scores)} images, labels with a score of at least {threshold:g} are predicted")
    print(format_report(metrics, list(map(one_line, names)), positives))


def evaluate(
    scores: np.ndarray,
    targets: np.ndarray,
    ignore: np.ndarray | None = None,
    threshold: float = 0.5,
    unknown_is_negative: bool = False,
) -> dict:
    """Compute mAP, AP, CP, CR, CF1, OP, OR, OF1, and CP_3 to OF1_3 from each image's three highest scores.

    scores: (N, C), a label is predicted if its score is ≥ threshold. targets: (N, C) of 0 and 1.
    ignore: (N, C) bool or None; mAP leaves out ignored labels, and so do all other metrics, which with
    unknown_is_negative count them as negative, as the authors do for WIDER. In VOC's top-3 the difficult
    labels take no place among the three; the authors let them take one, but never print these metrics.
    Returns fractions in [0, 1]. AP is a list of C values, NaN for a class without positives, and mAP is the
    mean of the others, NaN if there are none. CP and CR count a class without predictions or positives as 0.
    Raises ValueError for other shapes or targets, for no images and for NaN scores.
    """
    scores, targets = np.asarray(scores, float), np.asarray(targets)
    ignore = np.zeros(targets.shape, bool) if ignore is None else np.asarray(ignore, bool)
    check_inputs(scores, targets, ignore)
    positives = (targets == 1) & ~ignore
    by_class = zip(scores.T.copy(), positives.T.copy(), (~ignore).T.copy())
    ap = [average_precision(*arrays) for arrays in by_class]
    if unknown_is_negative:
        ignore = np.zeros_like(ignore)
    predicted, rest = (scores >= threshold) & ~ignore, np.where(ignore, -np.inf, scores)
    for _ in range(3):  # remove each image's highest score, the first of equal ones
        rest[np.arange(len(rest)), rest.argmax(axis=1)] = -np.inf
    metrics = {"mAP": float(np.nanmean(ap)) if positives.any() else math.nan, "AP": ap}
    metrics |= precision_recall_f1(predicted, positives)
    return metrics | precision_recall_f1(predicted & (rest != scores), positives, suffix="_3")


def average_precision(scores: np.ndarray, positives: np.ndarray, counted: np.ndarray) -> float:
    """Compute the mean precision at the ranks of the positives (N,), not interpolated; NaN without any."""
    hits = np.sort(scores[positives])
    if not len(hits):
        return math.nan
    # A rank is the number of scores at least as high: equal scores share the lowest, as in scikit-learn.
    ranked = np.sort(scores[counted & (scores >= hits[0])])
    rank_among_hits = len(hits) - np.searchsorted(hits, hits)
    return float(np.mean(rank_among_hits / (len(ranked) - np.searchsorted(ranked, hits))))


def precision_recall_f1(predicted: np.ndarray, positives: np.ndarray, suffix: str = "") -> dict[str, float]:
    """Compute precision, recall and F1 of (N, C) bool: as means over classes (C) and over all labels (O)."""
    counts = np.array([x.sum(axis=0) for x in (predicted & positives, predicted, positives)])  # (3, C)
    metrics = {}
    for letter, (num_hits, num_predicted, num_positives) in (("C", counts), ("O", counts.sum(axis=1))):
        p = float(np.mean(num_hits / np.maximum(num_predicted, 1)))
        r = float(np.mean(num_hits / np.maximum(num_positives, 1)))
        f1 = 2 * p * r / (p + r) if p + r else 0.0
        metrics |= {f"{letter}P{suffix}": p, f"{letter}R{suffix}": r, f"{letter}F1{suffix}": f1}
    return metrics


def format_report(metrics: dict, classes: list[str], positives: list[int]) -> str:
    """Format AP and the number of positives of each class that has some, then the other metrics, all in %."""
    width = max(len("class"), *map(len, classes))
    lines = [f"{'class':{width}}      AP  positives"]
    rows = zip(classes, metrics["AP"], positives)
    lines += [f"{c:{width}}  {100 * ap:6.2f}  {n:9}" for c, ap, n in rows if not math.isnan(ap)]
    if without := ", ".join(name for name, count in zip(classes, positives) if not count):
        lines.append(f"left out of mAP because they have no positives: {without}")
    for title, suffix in (("all", ""), ("top-3", "_3")):
        names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
        lines.append("  ".join([f"{title:5}", *(f"{n} {100 * metrics[n + suffix]:6.2f}" for n in names)]))
    return "\n".join([*lines, f"mAP {100 * metrics['mAP']:.4f} %"])


if __name__ == "__main__":
    run_script(main)
