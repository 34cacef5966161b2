"""Label files: reading and checking them. It needs no torch."""

import itertools
import math
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.labels import Labels, Listed, PathsBuilder, TargetsBuilder
from utils.runtime.errors import UserError
from utils.runtime.json_lists import read_json_list
from utils.runtime.limits import MAX_PIXELS
from utils.runtime.progress import delayed_bar

FORM = '{"target": [...], "img_path": "..."}'
INDEX_FORM = '{"positives": [...], "img_path": "..."}'
INDEX_KEYS = ("positives", "negatives", "img_path", "bbox", "objects")
UNKNOWN = 99  # in a `target` of a label file: an unknown label
MAX_PATH_BYTES = 4096  # no system takes longer ones
NUM_CHECKED = 100  # entries of a file that `is_label_file` reads
ENTRY_ERRORS = (TypeError, LookupError, ValueError, AttributeError, OverflowError)  # of a malformed entry


def read_labels(
    path: Path, num_classes: int, values: dict[int, int], max_pixels: float = MAX_PIXELS
) -> Labels:
    """Read a label file; `values` maps each number that a `target` may hold to what it means.

    Raises UserError if the file is malformed, or a box is above max_pixels.
    """
    int8_values = {number: target % 256 for number, target in values.items()}
    paths = PathsBuilder()
    targets = TargetsBuilder(num_classes)
    boxes = array("i")
    has_boxes = False
    for index, entry in enumerate(delayed_bar(read_json_list(path), path.stem)):
        try:
            add_targets(targets, entry, int8_values)
            paths.add(read_path(entry["img_path"]))
            if index == 0:
                has_boxes = "bbox" in entry
            if has_boxes:
                boxes.extend(box_edges(entry["bbox"], max_pixels))
            elif "bbox" in entry:
                raise ValueError("it has a bbox, but the entries before it have none")
        except ENTRY_ERRORS as error:
            where = f"{path}, entry {index}"
            raise UserError(
                f"{where} is not {expected_form(entry, values)} ({describe(error):.120}): {entry!s:.100}"
            ) from None
    labels = Labels(paths.build(), targets.build())
    if not len(labels.paths):
        raise UserError(f"{path} must be a JSON list of {FORM} or {INDEX_FORM}; it cannot be empty")
    if has_boxes:
        labels = labels._replace(boxes=np.asarray(boxes).reshape(-1, 4))
    return labels


def describe(error: Exception) -> str:
    """Return what is wrong with an entry in words."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) if isinstance(error, ValueError) else repr(error)


def expected_form(entry: Any, values: dict[int, int]) -> str:
    """Return words for the form that a malformed entry should have."""
    if isinstance(entry, dict) and entry.keys() & {"positives", "negatives"}:
        return f"{INDEX_FORM} with the indices of classes"
    return f"{FORM} with targets of {', '.join(map(str, sorted(values)))}"


def is_label_file(path: Path) -> bool:
    """Return whether a file starts like a label file; what its targets hold is not checked."""
    for entry in itertools.islice(read_json_list(path), NUM_CHECKED):
        if "img_path" not in entry or not entry.keys() & {"target", "positives"}:
            return False
    return True


def add_targets(targets: TargetsBuilder, entry: dict[str, Any], values: dict[int, int]) -> None:
    """Add the targets of an entry, which it lists for all classes or by index."""
    if "positives" not in entry and "negatives" not in entry:
        targets.add_row(read_target(entry["target"], targets.num_classes, values))
        return
    if "target" in entry:
        raise ValueError("target together with positives or negatives")
    if unknown := entry.keys() - INDEX_KEYS:  # a misspelt "negatives" would make unknown labels negative
        raise ValueError(f"there is no field {min(unknown)!r}: the fields are {', '.join(INDEX_KEYS)}")
    positives = read_indices(entry["positives"], targets.num_classes)
    negatives = None
    if "negatives" in entry:
        negatives = read_indices(entry["negatives"], targets.num_classes)
        if both := set(positives) & set(negatives):
            raise ValueError(f"class {min(both)} is in positives and in negatives")
    targets.add(Listed(positives, negatives))


def read_target(target: Any, num_classes: int, values: dict[int, int]) -> bytes:
    """Return the targets (C) of an entry as int8, its numbers replaced by the bytes that `values` gives."""
    if len(target) != num_classes:
        raise ValueError(f"{len(target)} targets for {num_classes} classes")
    try:
        return bytes([values[value] for value in target])
    except KeyError as error:
        raise ValueError(f"a target is {error}") from None


def read_indices(indices: Any, num_classes: int) -> list[int]:
    """Return the class indices of an entry; ValueError unless they are different and from 0 to C - 1."""
    if not isinstance(indices, list) or not all(type(index) is int for index in indices):  # True is an int
        raise ValueError(f"{indices!s:.50} is not a list of class indices")
    if indices and not 0 <= min(indices) <= max(indices) < num_classes:
        wrong = next(index for index in indices if not 0 <= index < num_classes)
        raise ValueError(
            f"there is no class {wrong}: {num_classes} classes have the indices 0 to {num_classes - 1}"
        )
    if len(set(indices)) < len(indices):
        raise ValueError(f"{indices!s:.50} has a class twice")
    return indices


def read_path(path: Any) -> bytes:
    """Return the image path of an entry as bytes; ValueError if it is empty or too long."""
    encoded = os.fsencode(path)
    if not 0 < len(encoded) <= MAX_PATH_BYTES:
        raise ValueError("img_path is empty or too long")
    return encoded


def box_edges(box: Any, max_pixels: float) -> tuple[int, int, int, int]:
    """Return a box's left, top, right and bottom edges as Pillow's crop rounds them.

    box: x, y, w, h in pixels. Raises ValueError unless it has 1 to max_pixels pixels.
    """
    x, y, w, h = box
    if not math.isfinite(x + y + w + h):
        raise ValueError(f"the box {box!s:.50} has a number that is not finite")
    left, top = round(x), round(y)
    right, bottom = round(x + w), round(y + h)
    if min(right - left, bottom - top) < 1:
        raise ValueError(f"the box {box!s:.50} is less than a pixel wide or high")
    if (right - left) * (bottom - top) > max_pixels:
        raise ValueError(f"the box {box!s:.50} is above the limit, max_pixels {max_pixels}")
    return left, top, right, bottom
