"""Label files and class names: reading, checking and writing. The preparers use this without torch."""

import os
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.runtime.cli import UserError, parsing
from utils.runtime.files import read_json, write_json_list

REPOSITORY = Path(__file__).resolve().parents[1]
FORM = '{"target": [...], "img_path": "..."}'
UNKNOWN = 99  # in a label file: counts in no loss and no metric
MAX_PATH_BYTES = 4096  # Linux's own limit; the array of all paths is as wide as the longest path


class Labels(NamedTuple):
    """The content of a label file, in flat arrays because worker processes can share their memory."""

    paths: np.ndarray  # (N,) UTF-8 bytes
    targets: np.ndarray  # (N, C) int8
    boxes: np.ndarray | None  # (N, 4) int32, the part to cut out, as x, y, w, h in pixels


def class_names(folder: str) -> list[str]:
    """Read the class names, in target order, from data/<folder>/classes.json here or in the repository."""
    name = Path("data", folder, "classes.json")
    path = name if name.exists() else REPOSITORY / name
    if not path.exists():
        raise UserError(f"{name} is missing: create it as a JSON list of the class names in target order")
    names = read_json(path)
    check_names(names, path)
    return names


def check_names(names: Any, path: Path) -> None:
    """Raise UserError, which names the file, if its class names are not a list of different names."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path} must hold a list of class names, and no name may be empty")
    for name in names:
        if not is_line(name):
            raise UserError(f"{path}: the class name {name!r} contains line breaks or control characters")
    if len(set(names)) != len(names):
        raise UserError(f"{path} contains {max(names, key=names.count)!r} more than once")


def is_line(name: str) -> bool:
    """Return whether a name is one line without control characters, which could command the terminal."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def read_labels(path: Path, num_classes: int, values: dict[int, int]) -> Labels:
    """Read a label file; `values` maps each number that its targets may hold to the target to return.

    Raises UserError, with the number of the entry, if an entry is malformed.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a JSON list of {FORM}; it cannot be empty")
    has_boxes = any(isinstance(entry, dict) and "bbox" in entry for entry in entries)
    targets = np.empty((len(entries), num_classes), dtype=np.int8)
    boxes = np.empty((len(entries), 4), dtype=np.int32) if has_boxes else None
    paths = []
    form = f"{FORM} with targets of {', '.join(map(str, sorted(values)))}"
    for index, entry in enumerate(entries):
        with parsing(f"{path}, entry {index} is not {form}: {str(entry):.100}"):
            if len(entry["target"]) != num_classes:
                raise UserError(
                    f"{path}, entry {index}: {len(entry['target'])} targets for {num_classes} classes"
                )
            targets[index] = [values[value] for value in entry["target"]]
            paths.append(os.fsencode(entry["img_path"]))
            if not 0 < len(paths[-1]) <= MAX_PATH_BYTES:
                raise ValueError("img_path is empty or too long")
            if has_boxes:
                boxes[index] = check_box(entry["bbox"])
    return Labels(np.array(paths), targets, boxes)


def check_box(box: list[int]) -> list[int]:
    """Return a box x, y, w, h; raise ValueError if it is not in whole pixels or has no area."""
    x, y, w, h = box
    if not all(type(side) is int for side in box) or min(x, y) < 0 or min(w, h) < 1:
        raise ValueError(f"bbox {box}")
    return box


def listed_file(folder: Path, name: str, source: Path) -> Path:
    """Return the path of a file that `source` lists; UserError if it is missing or not in the folder."""
    if Path(name).anchor or ".." in Path(name).parts:
        raise UserError(f"{source}: {name!r} leads out of {folder.name}/: download the original file again")
    path = folder / name
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing, but {source} lists it: unpack the data set again")
    return path


def write_labels(folder: Path, classes: list[str], splits: dict[str, list[dict[str, Any]]]) -> None:
    """Write a label file per split, {file name: entries}, and print the number of images of each class."""
    for name, entries in splits.items():
        write_json_list(folder / name, entries)
        num_labels = sum(value == 1 for entry in entries for value in entry["target"])
        print(f"{folder / name}: {len(entries)} images, {num_labels} labels")
    width = max(len("images of"), *map(len, classes))
    print(f"{'images of':{width}}", *(f"{Path(name).stem:>18}" for name in splits))
    for c, class_name in enumerate(classes):
        counts = (sum(entry["target"][c] == 1 for entry in entries) for entries in splits.values())
        print(f"{class_name:{width}}", *(f"{count:18}" for count in counts))
