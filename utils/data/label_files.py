"""Label files: reading and checking them. It needs no torch."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.runtime.errors import UserError
from utils.runtime.files import read_json
from utils.runtime.limits import MAX_PIXELS

FORM = '{"target": [...], "img_path": "..."}'
UNKNOWN = 99  # in a label file: an unknown label
IGNORED = -1  # in `targets`: a label that counts in no loss and no metric
MAX_PATH_BYTES = 4096  # the array of all paths is as wide as the longest path


class Labels(NamedTuple):
    """A label file in flat arrays, whose memory worker processes can share.

    paths: (N,) of UTF-8 bytes. targets: (N, C) int8 of 1, 0 or IGNORED. boxes: (N, 4) int32, the edges of the
    parts to cut out (see `box_edges`), or None for whole images. unknown_is_negative: see `evaluate`.
    """

    paths: np.ndarray
    targets: np.ndarray
    boxes: np.ndarray | None = None
    unknown_is_negative: bool = False


def read_labels(
    path: Path, num_classes: int, values: dict[int, int], max_pixels: float = MAX_PIXELS
) -> Labels:
    """Read a label file; `values` maps each number that its targets may hold to the target to return.

    Raises UserError if the file is malformed, or a box is above max_pixels.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a JSON list of {FORM}; it cannot be empty")
    has_boxes = any(isinstance(entry, dict) and "bbox" in entry for entry in entries)
    targets = np.empty((len(entries), num_classes), dtype=np.int8)
    boxes = np.empty((len(entries) if has_boxes else 0, 4), dtype=np.int32)
    paths = []
    for index, entry in enumerate(entries):
        try:
            targets[index] = read_target(entry["target"], num_classes, values)
            paths.append(read_path(entry["img_path"]))
            if has_boxes:
                boxes[index] = box_edges(entry["bbox"], max_pixels)
        except (TypeError, LookupError, ValueError, AttributeError, OverflowError) as error:
            form = f"{FORM} with targets of {', '.join(map(str, sorted(values)))}"
            raise UserError(f"{path}, entry {index} is not {form} ({error!r:.120}): {entry!s:.100}") from None
    return Labels(np.array(paths), targets, boxes if has_boxes else None)


def is_label_file(path: Path) -> bool:
    """Return whether a file has the form of a label file; what its targets hold is not checked."""
    entries = read_json(path)
    return isinstance(entries, list) and all(entry.keys() >= {"target", "img_path"} for entry in entries)


def read_target(target: Any, num_classes: int, values: dict[int, int]) -> list[int]:
    """Return the target (C) of an entry, its numbers replaced by those of `values`."""
    if len(target) != num_classes:
        raise ValueError(f"{len(target)} targets for {num_classes} classes")
    return [values[value] for value in target]


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


def fingerprint(labels: Labels) -> str:
    """Return 12 hex digits of a hash of the targets, boxes and file names, without the folders' names."""
    names = b"/".join(path.rpartition(b"/")[2] for path in labels.paths.tolist())
    boxes = b"" if labels.boxes is None else labels.boxes.tobytes()
    return hashlib.sha256(labels.targets.tobytes() + boxes + names).hexdigest()[:12]
