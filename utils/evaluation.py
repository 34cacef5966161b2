"""Multi-label metrics in NumPy. Run as a script, this prints the metrics of saved scores.

python utils/evaluation.py FILE.npz [--threshold 0.5] [--fit_thresholds FILE.json]
"""

import functools
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.metrics.scores import check_inputs, read_scores, read_thresholds, threshold
from utils.runtime.cli import Parser, UserError, given_path, one_line, run_script
from utils.runtime.files import check_file, write_json


def main() -> None:
    parser = Parser("Print the metrics of scores that val.py --save_scores or another program wrote.")
    arrays = "arrays scores, targets (N, C); optionally ignore, names, paths and unknown_is_negative"
    parser.add_argument("file", type=given_path, metavar="FILE.npz", help=arrays)
    least = "lowest score that is a prediction, or a .json file with one per class [default: 0.5]"
    any_number = functools.partial(threshold, low=-math.inf, high=math.inf)
    parser.add_argument("--threshold", type=any_number, metavar="NUMBER|FILE", help=least)
    fit_help = "write each class's threshold with the best F1, else --threshold, to this .json, and use it"
    parser.add_argument("--fit_thresholds", type=given_path, metavar="FILE", help=fit_help)
    args = parser.parse_args()
    check_file(args.fit_thresholds, "--fit_thresholds", ".json")
    saved = read_scores(args.file)
    scores, targets, ignore, names = (saved[key] for key in ("scores", "targets", "ignore", "names"))
    if args.threshold is None and (scores.min() < 0 or scores.max() > 1):
        raise UserError(f"{args.file}: scores from {scores.min():g} to {scores.max():g} need a --threshold")
    used = 0.5 if args.threshold is None else args.threshold
    thresholds = read_thresholds(used, names)
    if args.fit_thresholds:
        used, positives = args.fit_thresholds, (targets == 1) & ~ignore
        counted = ~ignore | saved["unknown_is_negative"]
        fitted = list(map(best_threshold, scores.T, positives.T, counted.T))
        thresholds = np.where(np.isnan(fitted), thresholds, fitted)
        if used.exists():  # replace no other kind of file
            read_thresholds(used, names)
        write_json(used, dict(zip(names, thresholds.tolist())))
        print(f"written to {used}: fitted to these images, so evaluate it on others")
    metrics = evaluate(scores, targets, ignore, thresholds, saved["unknown_is_negative"])
    print(f"{len(scores)} images, threshold {used}")
    print(format_report(metrics, list(map(one_line, names))))


def evaluate(
    scores: np.ndarray,
    targets: np.ndarray,
    ignore: np.ndarray | None = None,
    threshold: float | np.ndarray = 0.5,
    unknown_is_negative: bool = False,
) -> dict:
    """Compute mAP, AP, CP to OF1, CP_3 to OF1_3 (from the three highest scores), and metrics by class.

    scores: (N, C), a label is predicted if its score is ≥ threshold, a number or (C,). targets: 0 and 1.
    ignore: (N, C) bool or None; ignored labels count in no metric. With unknown_is_negative they count as
    negative in all metrics but mAP and AP, as the authors do for WIDER. An ignored label takes no place in
    the top 3. In the authors' code VOC's difficult labels take one, but they never print these metrics.
    Returns fractions in [0, 1], and counts. AP is a list of C values, NaN for a class without positives, and
    mAP is the mean of the others, NaN if there are none. Precision and recall without predictions or
    positives are 0.
    Raises ValueError for other shapes or targets, for no images and for NaN scores.
    """
    scores, targets = np.asarray(scores, float), np.asarray(targets)
    ignore = np.zeros(targets.shape, bool) if ignore is None else np.asarray(ignore, bool)
    check_inputs(scores, targets, ignore)
    positives = (targets == 1) & ~ignore
    ap = list(map(average_precision, scores.T.copy(), positives.T.copy(), (~ignore).T.copy()))
    if unknown_is_negative:
        ignore = np.zeros_like(ignore)
    predicted, rest = (scores >= threshold) & ~ignore, np.where(ignore, -np.inf, scores)
    top = np.zeros(scores.shape, bool)
    for _ in range(3):  # the highest score left of each image, the first of equals
        highest = np.arange(len(rest)), rest.argmax(axis=1)
        top[highest], rest[highest] = True, -np.inf
    metrics = {"mAP": float(np.nanmean(ap)) if positives.any() else math.nan, "AP": ap}
    metrics |= precision_recall_f1(predicted, positives)
    metrics |= precision_recall_f1(predicted & top, positives, suffix="_3")
    return metrics | metrics_by_class(predicted, positives)


def average_precision(scores: np.ndarray, positives: np.ndarray, counted: np.ndarray) -> float:
    """Compute a class's mean precision at the ranks of its positives, from arrays (N,); NaN without any."""
    hits = np.sort(scores[positives])
    if not len(hits):
        return math.nan
    # A rank is the number of scores at least as high: equal scores share the last one, as in scikit-learn.
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


def metrics_by_class(predicted: np.ndarray, positives: np.ndarray) -> dict[str, list]:
    """Compute precision, recall and F1 of each class of (N, C) bool, 0 where undefined, and their counts."""
    correct, predicted, positives = (x.sum(axis=0) for x in (predicted & positives, predicted, positives))
    lists = {"positives": positives, "predicted": predicted, "correct": correct}
    for name, count in (("precision", predicted), ("recall", positives), ("F1", (predicted + positives) / 2)):
        lists[name] = correct / np.maximum(count, 0.5)
    return {name: values.tolist() for name, values in lists.items()}


def best_threshold(scores: np.ndarray, positives: np.ndarray, counted: np.ndarray) -> float:
    """Compute a class's threshold with the best F1, the highest of equals, from arrays (N,), or NaN."""
    hits, ranked = np.sort(scores[positives]), np.sort(scores[counted])
    if not len(hits):
        return math.nan
    # Only the scores of positives are tried: between two of them, a lower threshold just adds errors.
    num_hits, num_predicted = (len(x) - np.searchsorted(x, hits) for x in (hits, ranked))
    f1 = 2 * num_hits / (num_predicted + len(hits))
    best = hits[np.flatnonzero(f1 == f1.max())[-1]]
    # Halfway to the next lower score, because another device computes slightly different scores.
    return float(np.mean([best, *ranked[ranked < best][-1:]]))


def format_report(metrics: dict, classes: list[str]) -> str:
    """Format the metrics of each class that has positives, then the metrics of all, in %."""
    width = max(len("class"), *map(len, classes))
    columns = ("positives", "predicted", "correct", "precision", "recall", "F1")
    columns = [column for column in columns if column in metrics]  # runs of older versions lack some
    lines = [f"{'class':{width}}      AP" + "".join(f"  {column:>9}" for column in columns)]
    for name, ap, *rest in zip(classes, metrics["AP"], *(metrics[column] for column in columns)):
        cells = (f"  {x:9}" if isinstance(x, int) else f"  {100 * x:9.2f}" for x in rest)
        if not math.isnan(ap):
            lines.append(f"{name:{width}}  {100 * ap:6.2f}" + "".join(cells))
    if without := ", ".join(name for name, ap in zip(classes, metrics["AP"]) if math.isnan(ap)):
        lines.append(f"no positives, so left out of mAP, and 0 in CP and CR: {without}")
    for title, suffix in (("all", ""), ("top-3", "_3")):
        names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
        lines.append("  ".join([f"{title:5}", *(f"{n} {100 * metrics[n + suffix]:6.2f}" for n in names)]))
    return "\n".join([*lines, f"mAP {100 * metrics['mAP']:.4f} %"])


if __name__ == "__main__":
    run_script(main)
