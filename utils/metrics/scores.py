"""Files of scores: .npz with scores, targets, ignore, names, paths, unknown_is_negative; and thresholds."""

import argparse
import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np

from utils.data.label_files import IGNORED, Labels
from utils.runtime.cli import reporting_errors
from utils.runtime.files import atomic_write, read_json


def write_scores(path: Path, scores: np.ndarray, labels: Labels, names: list[str]) -> None:
    """Write scores (N, C), the labels that they belong to, and C class names to an .npz file."""
    targets, ignore = (labels.targets == 1).astype(np.int8), labels.targets == IGNORED
    paths = np.char.decode(labels.paths, "utf-8", "surrogateescape")
    arrays = {"scores": scores, "targets": targets, "ignore": ignore, "names": names, "paths": paths}
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays, unknown_is_negative=labels.unknown_is_negative)


def by_class(metrics: dict, names: list[str]) -> dict:
    """Return the metrics of `evaluate` with {class: value} for each list, as files of metrics hold them."""
    return {k: dict(zip(names, v)) if isinstance(v, list) else v for k, v in metrics.items()}


def read_scores(path: Path) -> dict:
    """Read the arrays that `write_scores` wrote, as a dict; UserError if they are malformed or do not fit."""
    with reporting_errors(f"{path} must hold scores and targets (N, C) as val.py --save_scores writes them"):
        if not (path.is_file() and zipfile.is_zipfile(path)):
            raise ValueError("it is not an .npz file" if path.exists() else "there is no such file")
        with np.load(path, allow_pickle=False) as file:  # a pickle could run code
            scores, targets = file["scores"].astype(float), file["targets"]
            ignore = file.get("ignore", np.zeros(targets.shape)).astype(bool)
            check_inputs(scores, targets, ignore)
            names = file.get("names", np.arange(scores.shape[1])).astype(str)
            paths = file.get("paths", np.arange(len(scores))).astype(str)
            flag = {"unknown_is_negative": bool(file.get("unknown_is_negative", False))}
        if (paths.shape, names.shape) != (scores.shape[:1], scores.shape[1:]):
            raise ValueError(f"scores are {scores.shape}, but names are {names.shape}, paths {paths.shape}")
    names, paths = names.tolist(), paths.tolist()
    return {"scores": scores, "targets": targets, "ignore": ignore, "names": names, "paths": paths} | flag


def check_inputs(scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray) -> None:
    """Raise ValueError unless the arrays have one shape (N, C), no score is NaN and targets are 0 or 1."""
    shapes = scores.shape, targets.shape, ignore.shape
    if scores.ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(f"scores, targets and ignore must have one shape (N, C), not {shapes}")
    if scores.size == 0:
        raise ValueError(f"there is nothing to evaluate: scores have shape {scores.shape}")
    if (rows := np.flatnonzero(np.isnan(scores).any(axis=1))).size:
        raise ValueError(f"scores are NaN for {len(rows)} of {len(scores)} images, first for image {rows[0]}")
    if not ((targets == 0) | (targets == 1) | ignore).all():
        raise ValueError("targets must be 0 or 1 where they are not ignored")


def threshold(text: str, low: float = 0, high: float = 1) -> float | Path:
    """Parse a threshold from low to high, or the .json file with one per class; an argparse type."""
    if text.endswith(".json"):
        return Path(text)
    with contextlib.suppress(ValueError):
        if low <= (value := float(text)) <= high:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}, nor a .json file")


def read_thresholds(given: float | str | Path, names: list[str]) -> np.ndarray:
    """Return the thresholds (C,) of C classes: one number for all, or a file of {class: threshold}."""
    if not isinstance(given, str | os.PathLike):
        return np.full(len(names), float(given))
    with reporting_errors(f"{given} must hold a threshold for each class"):
        values = read_json(Path(given))
        thresholds = np.array([float(values[name]) for name in names])
        if np.isnan(thresholds).any():
            raise ValueError("one of them is NaN")
        return thresholds
