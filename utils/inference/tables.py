"""Tables of scores that demo.py writes: a row per photograph, a column per class."""

import csv
from pathlib import Path

import numpy as np

from utils.runtime.files import atomic_write, write_json


def write_json_table(path: Path, classes: list[str], results: dict[str, np.ndarray]) -> None:
    """Write {photograph: scores (C,)} as a JSON list of {"image": photograph, "scores": {class: score}}."""
    rows = []
    for photo, scores in results.items():
        rows.append({"image": photo, "scores": dict(zip(classes, scores.tolist()))})
    write_json(path, rows, indent=1)


def write_csv_table(path: Path, classes: list[str], results: dict[str, np.ndarray]) -> None:
    """Write {photograph: scores (C,)} as a CSV table with the columns image and the classes."""
    with atomic_write(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", *classes])
        for photo, scores in results.items():
            table.writerow([photo, *(f"{score:.6g}" for score in scores)])
