"""Label files and class names: how they are written, checked and read. Without torch, for the preparers."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from utils.runtime.cli import UserError
from utils.runtime.files import read_json, write_json_list

REPOSITORY = Path(__file__).resolve().parents[1]
FORM = '{"target": [...], "img_path": "..."}'
LONGEST_PATH = 4096  # bytes, Linux's own limit; the array of all paths is as wide as its longest


def class_names(folder: str) -> list[str]:
    """Read the class names, in target order, from data/<folder>/classes.json here or in the repository."""
    path = Path("data", folder, "classes.json")
    if not path.exists():
        path = REPOSITORY / path
    if not path.exists():
        raise UserError(
            f"data/{folder}/classes.json is missing: a JSON list of the class names in target order"
        )
    names = read_json(path)
    check_names(names, path)
    return names


def check_names(names: Any, path: Path) -> None:
    """Raise UserError, naming the file they are from, where these are no class names."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path} must hold a list of class names, none of them empty")
    for name in names:
        if not is_line(name):
            raise UserError(f"{path}: the class name {name!r} cannot be printed on a line")
    if len(set(names)) != len(names):
        raise UserError(f"{path} names {max(names, key=names.count)!r} more than once")


def is_line(name: str) -> bool:
    """Tell whether a name is a line of text, without control characters, which a terminal would obey."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def read_labels(
    path: Path, num_classes: int, values: dict[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read a label file; UserError where an entry is not as it must be.

    values: what each number in the file's targets stands for.
    Returns paths (N,) as UTF-8 bytes, targets (N, C) int8 and, where entries have a "bbox" to cut out, boxes
    (N, 4) int32 of x, y, w, h in pixels, else None: flat arrays, whose memory worker processes share, while
    of a million Python objects each worker would make copies as it touches them.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a JSON list of {FORM}, and not an empty one")
    targets = np.empty((len(entries), num_classes), dtype=np.int8)
    boxed = any(isinstance(entry, dict) and "bbox" in entry for entry in entries)
    boxes = np.empty((len(entries), 4), dtype=np.int32) if boxed else None
    paths = []
    for index, entry in enumerate(entries):
        try:
            target, img_path = entry["target"], entry["img_path"]
            if len(target) != num_classes:
                raise UserError(f"{path}, entry {index}: {len(target)} targets for {num_classes} classes")
            targets[index] = [values[value] for value in target]
            paths.append(os.fsencode(img_path))
            if boxed:
                boxes[index] = checked_box(entry["bbox"])
            if not 0 < len(paths[-1]) <= LONGEST_PATH:
                raise ValueError
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            known = ", ".join(map(str, sorted(values)))
            fault = f"{type(error).__name__} {str(error)[:50]}".strip()
            raise UserError(
                f"{path}, entry {index} is not {FORM} with targets of {known} ({fault}): {str(entry)[:100]}"
            ) from None
    return np.array(paths), targets, boxes


def checked_box(box: list[int]) -> list[int]:
    """Return a box [x, y, w, h] of whole pixels; ValueError where it is none."""
    x, y, w, h = box
    if not all(type(side) is int for side in box) or min(x, y) < 0 or min(w, h) < 1:
        raise ValueError(f"bbox {box}")
    return box


def write_labels(folder: Path, classes: list[str], splits: dict[str, list[dict[str, Any]]]) -> None:
    """Write the label files of all splits, {file name: entries}, and print how many images each class has."""
    for name, entries in splits.items():
        write_json_list(folder / name, entries)
        labels = sum(value == 1 for entry in entries for value in entry["target"])
        print(f"{folder / name}: {len(entries)} images, {labels} labels")
    width = max(len("images of"), *map(len, classes))
    print(f"{'images of':{width}}", *(f"{Path(name).stem:>18}" for name in splits))
    for c, class_name in enumerate(classes):
        counts = (sum(entry["target"][c] == 1 for entry in entries) for entries in splits.values())
        print(f"{class_name:{width}}", *(f"{count:18}" for count in counts))
