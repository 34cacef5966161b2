"""Tables of scores that demo.py writes: a row per photograph, a column per class."""

import csv
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.runtime.files import atomic_write, write_json_list

UTF8_MARK = "\ufeff"
ROWS_THAT_TELL = 100
START_LENGTH = 2**16  # characters, more than a path has
# The first characters of a list of {"image": text, "scores": {, or an empty list.
JSON_START = re.compile(r'\[\s*(\]\s*$|\{\s*"image":\s*"([^"\\]|\\.)*",\s*"scores":\s*\{)')


def write_json_table(path: Path, classes: list[str], photos: list[str], scores: Iterable[np.ndarray]) -> None:
    """Write a JSON list with a line per photograph, {"image": photograph, "scores": {class: score}}.

    scores: those of each photograph (C,), in the same order.
    """
    rows = zip(photos, scores)
    write_json_list(
        path, ({"image": photo, "scores": dict(zip(classes, row.tolist()))} for photo, row in rows)
    )


def write_csv_table(path: Path, classes: list[str], photos: list[str], scores: Iterable[np.ndarray]) -> None:
    """Write a CSV table with the columns image and the classes; see write_json_table.

    The file starts with the UTF-8 mark if a name has other than ASCII characters: without it Excel shows them
    wrong, and with it some programs read the mark as a part of the first name.
    """
    is_ascii = all(name.isascii() for name in itertools.chain(classes, photos))
    with atomic_write(path) as file:
        if not is_ascii:
            file.write(UTF8_MARK)
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", *classes])
        for photo, row in zip(photos, scores):
            table.writerow([photo, *(f"{score:.6g}" for score in row.tolist())])


def is_json_table(path: Path) -> bool:
    """Return whether a file starts as `write_json_table` writes it; so do the tables of earlier versions."""
    with open(path, encoding="utf-8") as file:
        start = file.read(START_LENGTH)
    return JSON_START.match(start) is not None


def is_csv_table(path: Path) -> bool:
    """Return whether a file holds scores, as `write_csv_table` writes them, and not labels of 0 and 1.

    The first rows tell.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header, *rows = itertools.islice(csv.reader(file), ROWS_THAT_TELL)
    scores = [cell for row in rows for cell in row[1:]]
    all_scores = all(0 <= float(cell) <= 1 and f"{float(cell):.6g}" == cell for cell in scores)
    # A label or a rounded share has few digits, a score hardly ever.
    num_long = sum(len(cell) > len("0.000") for cell in scores)
    return header[0] == "image" and all_scores and (not rows or 2 * num_long > len(scores))
