"""Tables of scores that demo.py writes: a row per photograph, a column per class."""

import csv
from pathlib import Path

import numpy as np

from utils.runtime.files import atomic_write, read_json, write_json

UTF8_MARK = "\ufeff"


def write_json_table(path: Path, classes: list[str], results: dict[str, np.ndarray]) -> None:
    """Write {photograph: scores (C,)} as a JSON list of {"image": photograph, "scores": {class: score}}."""
    rows = []
    for photo, scores in results.items():
        rows.append({"image": photo, "scores": dict(zip(classes, scores.tolist()))})
    write_json(path, rows, indent=1)


def write_csv_table(path: Path, classes: list[str], results: dict[str, np.ndarray]) -> None:
    """Write {photograph: scores (C,)} as a CSV table with the columns image and the classes.

    The file starts with the UTF-8 mark if a name has other than ASCII characters: without it Excel shows them
    wrong, and with it some programs read the mark as a part of the first name.
    """
    is_ascii = all(name.isascii() for name in (*classes, *results))
    with atomic_write(path) as file:
        if not is_ascii:
            file.write(UTF8_MARK)
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", *classes])
        for photo, scores in results.items():
            table.writerow([photo, *(f"{score:.6g}" for score in scores)])


def is_json_table(path: Path) -> bool:
    """Return whether a file holds what `write_json_table` writes."""
    rows = read_json(path)
    return isinstance(rows, list) and all(row.keys() == {"image", "scores"} for row in rows)


def is_csv_table(path: Path) -> bool:
    """Return whether a file holds scores, as `write_csv_table` writes them, and not labels of 0 and 1."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    scores = [cell for row in rows for cell in row[1:]]
    all_scores = all(0 <= float(cell) <= 1 and f"{float(cell):.6g}" == cell for cell in scores)
    # A label or a rounded share has few digits, a score hardly ever.
    num_long = sum(len(cell) > len("0.000") for cell in scores)
    return header[0] == "image" and all_scores and (not rows or 2 * num_long > len(scores))
