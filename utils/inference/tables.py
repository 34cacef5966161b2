"""Tables of scores that demo.py writes: a row per photograph, a column per class."""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from utils.runtime.files import atomic_write, reporting_write_errors, write_all, write_json_list
from utils.runtime.json_lists import read_json_list

UTF8_MARK = "\ufeff"
LINES_THAT_TELL = 100
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


def needs_utf8_mark(names: Iterable[str]) -> bool:
    """Return whether a CSV table with these names should start with the UTF-8 mark.

    Without it Excel shows names with other than ASCII characters wrong, and with it some programs read the
    mark as a part of the first name.
    """
    return not all(name.isascii() for name in names)


def write_csv_table(
    path: Path, classes: list[str], photos: list[str], scores: Iterable[np.ndarray], utf8_mark: bool
) -> None:
    """Write a CSV table with the columns image and the classes; see write_json_table."""
    with atomic_write(path) as file:
        if utf8_mark:
            file.write(UTF8_MARK)
        file.write(csv_line(["image", *classes]))
        for photo, row in zip(photos, scores):
            file.write(csv_row(photo, row))


def append_csv_row(path: Path, photo: str, scores: np.ndarray) -> None:
    """Add the row of a photograph to a table that `write_csv_table` began; scores: (C,).

    On Windows nothing can be added while Excel shows the table. The row is left out then: the finished table,
    which replaces this one, has it.
    """
    with (
        reporting_write_errors(path),
        contextlib.suppress(PermissionError),
        open(path, "ab", buffering=0) as file,
    ):
        write_all(file, csv_row(photo, scores).encode("utf-8", "surrogateescape"))


def csv_row(photo: str, scores: np.ndarray) -> str:
    """Return the line of a photograph; scores: (C,)."""
    return csv_line([photo, *(f"{score:.6g}" for score in scores.tolist())])


def csv_line(cells: list[str]) -> str:
    """Return a line of a CSV table."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def csv_photos(path: Path) -> Iterator[str]:
    """Yield the photographs of a table that `write_csv_table` wrote."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for row in rows:
            yield row[0]


def json_photos(path: Path) -> Iterator[str]:
    """Yield the photographs of a table that `write_json_table` wrote."""
    for row in read_json_list(path):
        yield row["image"]


def is_json_table(path: Path) -> bool:
    """Return whether a file starts as `write_json_table` writes it; so do the tables of earlier versions."""
    with open(path, encoding="utf-8") as file:
        start = file.read(START_LENGTH)
    return JSON_START.match(start) is not None


def is_csv_table(path: Path) -> bool:
    """Return whether a file holds scores, as `write_csv_table` writes them, and not labels of 0 and 1.

    The first lines tell.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = itertools.islice(file, LINES_THAT_TELL)
        header, *rows = csv.reader(line for line in lines if line.endswith("\n"))  # a kill can tear the last
    scores = [cell for row in rows for cell in row[1:]]
    all_scores = all(0 <= float(cell) <= 1 and f"{float(cell):.6g}" == cell for cell in scores)
    # A label or a rounded share has few digits, a score hardly ever.
    num_long = sum(len(cell) > len("0.000") for cell in scores)
    return header[0] == "image" and all_scores and (not rows or 2 * num_long > len(scores))
