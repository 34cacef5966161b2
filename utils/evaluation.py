"""Multi-label metrics, in NumPy alone, and how they are printed. As a script: those of saved scores.

python utils/evaluation.py FILE.npz [--threshold 0.5]
"""

import math
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.runtime.cli import Parser, UserError, given_path, number, one_line, run


def main() -> None:
    parser = Parser(
        description="Print the metrics of scores that val.py --save_scores wrote, or another program."
    )
    parser.add_argument(
        "file",
        type=given_path,
        metavar="FILE.npz",
        help="scores and targets (N, C), and if there are any: ignore (N, C), names (C,), paths (N,)",
    )
    parser.add_argument(
        "--threshold", type=number(float, -math.inf), help="least score that predicts a label [default: 0.5]"
    )
    args = parser.parse_args()
    arrays = read_scores(args.file)
    scores = arrays["scores"]
    if args.threshold is None and (scores.min() < 0 or scores.max() > 1):
        raise UserError(
            f"{args.file}: scores from {scores.min():g} to {scores.max():g} are no probabilities, where 0.5 "
            "predicts a label: give the --threshold"
        )
    threshold = 0.5 if args.threshold is None else args.threshold
    metrics = evaluate(scores, arrays["targets"], arrays["ignore"], threshold)
    positives = ((arrays["targets"] == 1) & ~arrays["ignore"]).sum(axis=0).tolist()
    print(f"{len(scores)} images, a score of {threshold:g} predicts")
    print(format_report(metrics, list(map(one_line, arrays["names"])), positives))


def read_scores(path: Path) -> dict:
    """Read scores, targets and ignore (N, C), names (a list of C) and paths (a list of N) from an .npz file.

    Raises UserError where it holds no such arrays. Nothing in the file is run.
    """
    if not path.is_file():
        raise UserError(
            f"{path} {'is no regular file' if path.exists() else 'is missing: there is no such file'}"
        )
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file")
        with np.load(path, allow_pickle=False) as file:
            scores, targets = file["scores"].astype(float), file["targets"]
            ignore = file["ignore"].astype(bool) if "ignore" in file else np.zeros(targets.shape, bool)
            check_inputs(scores, targets, ignore)
            names = (file["names"] if "names" in file else np.arange(scores.shape[1])).astype(str).tolist()
            paths = (file["paths"] if "paths" in file else np.arange(len(scores))).astype(str).tolist()
        if len(names) != scores.shape[1] or len(paths) != len(scores):
            raise ValueError(f"{len(names)} names and {len(paths)} paths for scores of {scores.shape}")
    except KeyError as error:
        raise UserError(f"{path} lacks an array: {error}; it needs scores and targets (N, C)") from None
    except Exception as error:  # what NumPy raises depends on the bytes
        raise UserError(f"{path} holds no scores as val.py --save_scores writes them: {error}") from None
    return {"scores": scores, "targets": targets, "ignore": ignore, "names": names, "paths": paths}


def evaluate(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, threshold: float = 0.5
) -> dict:
    """Compute mAP, AP, CP, CR, CF1, OP, OR, OF1 and, of each image's three highest scores only, CP_3 … OF1_3.

    scores: (N, C), a label is predicted at ≥ threshold. targets: (N, C) of 0 and 1. ignore: (N, C) bool, or
    None; such entries count in no metric and take no place among the three highest.
    Returns fractions in [0, 1]. AP is a list of C, NaN for a class without positives, and mAP the mean of
    the rest, NaN if there is none. In the other metrics a class with nothing predicted, or no positives,
    counts as 0. Raises ValueError for other shapes or targets, for no images and for NaN scores.
    """
    scores, targets = np.asarray(scores, float), np.asarray(targets)
    ignore = np.zeros(targets.shape, bool) if ignore is None else np.asarray(ignore, bool)
    check_inputs(scores, targets, ignore)
    positives = (targets == 1) & ~ignore
    ap = average_precision(scores, positives, ~ignore)
    predicted = (scores >= threshold) & ~ignore
    top3 = predicted & top_k(np.where(ignore, -np.inf, scores), k=3)
    return {
        "mAP": float(np.nanmean(ap)) if positives.any() else float("nan"),
        "AP": ap.tolist(),
        **precision_recall_f1(predicted, positives),
        **{f"{name}_3": value for name, value in precision_recall_f1(top3, positives).items()},
    }


def check_inputs(scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray) -> None:
    """Raise ValueError unless the three are (N, C) of what `evaluate` takes."""
    if scores.ndim != 2 or not scores.shape == targets.shape == ignore.shape:
        raise ValueError(
            "scores, targets and ignore must be of one shape (N, C), not "
            f"{scores.shape}, {targets.shape} and {ignore.shape}"
        )
    if scores.size == 0:
        raise ValueError(f"there is nothing to evaluate: scores have shape {scores.shape}")
    if np.isnan(scores).any():
        rows = np.flatnonzero(np.isnan(scores).any(axis=1))
        raise ValueError(f"scores are NaN for {len(rows)} of {len(scores)} images, first for image {rows[0]}")
    if not ((targets == 0) | (targets == 1) | ignore).all():
        raise ValueError("targets must be 0 or 1 wherever they are not ignored")


def average_precision(scores: np.ndarray, positives: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """AP of each class: the mean, over its positives, of the precision at each one's rank, not interpolated.

    scores, positives, counted: (N, C). Images of equal score share the rank of the last of them, so that the
    order of the images does not matter (as in scikit-learn). Returns (C,), NaN for a class without positives.
    """
    ap = np.full(scores.shape[1], np.nan)
    by_class = (np.ascontiguousarray(x.T) for x in (scores, positives, counted))
    for c, (score, positive, count) in enumerate(zip(*by_class)):
        if not positive.any():
            continue
        hits = np.sort(score[positive])
        ranked = np.sort(score[count & (score >= hits[0])])  # what ranks below every hit has no say
        # The rank of a score is the number of scores at least as high.
        rank_among_hits = len(hits) - np.searchsorted(hits, hits)
        rank = len(ranked) - np.searchsorted(ranked, hits)
        ap[c] = np.mean(rank_among_hits / rank)
    return ap


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Mark the k highest scores of each row (N, C), of equal ones the first class; returns bool."""
    rest, rows = scores.copy(), np.arange(len(scores))
    for _ in range(min(k, scores.shape[1])):
        rest[rows, rest.argmax(axis=1)] = -np.inf
    return rest != scores


def precision_recall_f1(predicted: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    """Compute CP and CR, class means of tp/predicted and tp/positives, OP and OR, of their sums, CF1 and OF1.

    predicted, positives: (N, C) bool. F1 is the harmonic mean of precision and recall.
    """
    hits, tried, wanted = (x.sum(axis=0) for x in (predicted & positives, predicted, positives))
    result = {}
    for letter, precision, recall in (
        ("C", np.mean(hits / np.maximum(tried, 1)), np.mean(hits / np.maximum(wanted, 1))),
        ("O", hits.sum() / max(tried.sum(), 1), hits.sum() / max(wanted.sum(), 1)),
    ):
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
        result |= {f"{letter}P": float(precision), f"{letter}R": float(recall), f"{letter}F1": float(f1)}
    return result


def format_report(metrics: dict, classes: list[str], positives: list[int]) -> str:
    """Format AP and the number of positives by class, then the other metrics, all in %."""
    width = max(len("class"), *map(len, classes))
    lines = [f"{'class':{width}}      AP  positives"]
    lines += [f"{c:{width}}  {100 * ap:6.2f}  {n:9}" for c, ap, n in zip(classes, metrics["AP"], positives)]
    without = [name for name, count in zip(classes, positives) if not count]
    if without:
        lines.append(f"left out of mAP, having no positives: {', '.join(without)}")
    for title, suffix in (("all", ""), ("top-3", "_3")):
        values = (
            f"{name} {100 * metrics[name + suffix]:6.2f}" for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")
        )
        lines.append(f"{title:5}  {'  '.join(values)}")
    lines.append(f"mAP {100 * metrics['mAP']:.4f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
