"""Two files of scores of the same images: their rows are matched by path, and their labels compared."""

from pathlib import Path

import numpy as np

from utils.data.lookalikes import compose
from utils.metrics.score_files import SavedScores
from utils.runtime.errors import UserError


def in_same_order(first: SavedScores, second: SavedScores, files: list[Path]) -> SavedScores:
    """Return the second scores with their images in the order of the first.

    Images with one path, such as WIDER's persons, keep their order among each other. files: the names of the
    two files. Raises UserError if images, classes or labels differ.
    """
    check_classes(first, second, files)
    rows = matching_rows(first.paths, second.paths, files)
    matched = second._replace(
        scores=second.scores[rows],
        targets=second.targets[rows],
        ignore=second.ignore[rows],
        paths=first.paths,
    )
    check_labels(first, matched, files)
    return matched


def check_classes(first: SavedScores, second: SavedScores, files: list[Path]) -> None:
    """Raise UserError unless both files have the same classes in the same order."""
    names, others = ([compose(name) for name in saved.names] for saved in (first, second))
    if len(names) != len(others):
        raise mismatch(files, f"{len(names)} and {len(others)} classes")
    for index, (name, other) in enumerate(zip(names, others)):
        if name != other:
            raise mismatch(files, f"other classes: class {index} is {name!r:.99} and {other!r:.99}")


def matching_rows(paths: list[str], others: list[str], files: list[Path]) -> np.ndarray:
    """Return for each path the row of the same path among the others; UserError if one is missing there."""
    sorted_rows = np.argsort(np.array(paths), kind="stable")
    sorted_others = np.argsort(np.array(others), kind="stable")
    if [paths[row] for row in sorted_rows] != [others[row] for row in sorted_others]:
        raise mismatch(files, f"other images: {describe_difference(paths, others)}")
    rows = np.empty(len(paths), int)
    rows[sorted_rows] = sorted_others
    return rows


def describe_difference(paths: list[str], others: list[str]) -> str:
    """Return words that name an image that only one of two files has."""
    only_first, only_second = sorted(set(paths) - set(others)), sorted(set(others) - set(paths))
    if not only_first and not only_second:
        return f"{len(paths)} and {len(others)} rows, some with the same path"
    which, only = ("first", only_first) if only_first else ("second", only_second)
    return f"{len(only)} only in the {which} file, such as {only[0]:.500}"


def check_labels(first: SavedScores, second: SavedScores, files: list[Path]) -> None:
    """Raise UserError unless both files, in the same order, have the same labels."""
    differs = (first.positives != second.positives) | (first.ignore != second.ignore)
    if differs.any():
        image, label = np.unravel_index(differs.argmax(), differs.shape)
        where = f"{first.paths[image]:.500}, class {first.names[label]:.99}"
        raise mismatch(files, f"other labels: {differs.sum()} differ, first that of {where}")
    if first.unknown_is_negative != second.unknown_is_negative:
        raise mismatch(files, "another unknown_is_negative")


def mismatch(files: list[Path], difference: str) -> UserError:
    """Return the error for two files that cannot be compared."""
    return UserError(f"{files[0]} and {files[1]} have {difference}; save both with the same label file")
