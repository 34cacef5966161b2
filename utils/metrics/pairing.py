"""Two files of scores of the same images: their rows are matched by path, and their labels compared."""

import os
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
    """Return for each path the row of the same image among the others; UserError if one is missing there."""
    names, other_names = normalize(paths), normalize(others)
    sorted_rows = np.argsort(np.array(names), kind="stable")
    sorted_others = np.argsort(np.array(other_names), kind="stable")
    if [names[row] for row in sorted_rows] != [other_names[row] for row in sorted_others]:
        difference = describe_difference(dict(zip(names, paths)), dict(zip(other_names, others)))
        if difference is None:
            difference = f"{len(paths)} and {len(others)} rows, some with the same path"
        raise mismatch(files, f"other images: {difference}")
    rows = np.empty(len(paths), int)
    rows[sorted_rows] = sorted_others
    return rows


def normalize(paths: list[str]) -> list[str]:
    """Return paths in one spelling: absolute, with slashes and without . and .., accents composed.

    A relative path is below the current folder, from which commands are run.
    """
    folder = os.getcwd()
    return [compose(os.path.normpath(os.path.join(folder, path.replace("\\", "/")))) for path in paths]


def describe_difference(first: dict[str, str], second: dict[str, str]) -> str | None:
    """Return words that name images that only one of two files has, None if there is none.

    first, second: {normalized path: path as the file spells it}.
    """
    found = []
    for which, own, other in (("first", first, second), ("second", second, first)):
        only = sorted(own.keys() - other.keys())
        if only:
            found.append(f"{len(only)} only in the {which} file, such as {own[only[0]]:.500}")
    return ", and ".join(found) or None


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
