"""Label files and class names: reading, checking and writing. The preparers use this without torch."""

import hashlib
import math
import os
import unicodedata
from argparse import Namespace
from collections import namedtuple
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.runtime.cli import Parser, UserError, add_max_pixels, default_workers
from utils.runtime.files import read_json, write_json_list

FORM = '{"target": [...], "img_path": "..."}'
UNKNOWN = 99  # in a label file: an unknown label
CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories of control characters, surrogates and line ends
IGNORED = -1  # in `targets`: a label that counts in no loss and no metric
# A label file in flat arrays, whose memory worker processes can share: paths (N,) of UTF-8 bytes, targets
# (N, C) int8, and boxes (N, 4) int32, the edges of the parts to cut out (see `box_edges`), or None.
# unknown_is_negative: see `evaluate`.
Labels = namedtuple("Labels", ["paths", "targets", "boxes", "unknown_is_negative"], defaults=[None, False])


def class_names(folder: str) -> list[str]:
    """Read the class names, in target order, from data/<folder>/classes.json here or in the repository."""
    name = Path("data", folder, "classes.json")
    path = name if name.exists() else Path(__file__).resolve().parents[2] / name
    if not path.exists():
        raise UserError(f"{name} is missing: create it as a JSON list of the class names in target order")
    return check_names(read_json(path), path)


def check_names(names: Any, path: Path) -> list[str]:
    """Return the class names that a file holds; UserError if they are not a list of different names."""
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} must hold one or more class names (JSON: a list)")
    for name in names:
        if not isinstance(name, str) or not name or {*map(unicodedata.category, name)} & CONTROL:
            raise UserError(f"{path}: class names are lines without control characters, not {name!r:.99}")
    if len(set(names)) != len(names):
        raise UserError(f"{path} contains {max(names, key=names.count)!r} more than once")
    return names


def read_labels(path: Path, num_classes: int, values: dict[int, int], max_pixels: float = math.inf) -> Labels:
    """Read a label file; `values` maps each number that its targets may hold to the target to return."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a JSON list of {FORM}; it cannot be empty")
    has_boxes = any(isinstance(entry, dict) and "bbox" in entry for entry in entries)
    targets, paths = np.empty((len(entries), num_classes), dtype=np.int8), []
    boxes = np.empty((len(entries), 4), dtype=np.int32) if has_boxes else None
    for index, entry in enumerate(entries):
        try:
            if len(entry["target"]) != num_classes:
                raise ValueError(f"{len(entry['target'])} targets for {num_classes} classes")
            targets[index] = [values[value] for value in entry["target"]]
            paths.append(os.fsencode(entry["img_path"]))
            if not 0 < len(paths[-1]) <= 4096:  # the array of all paths is as wide as the longest path
                raise ValueError("img_path is empty or too long")
            if has_boxes:
                boxes[index] = box_edges(entry["bbox"], max_pixels)
        except (TypeError, LookupError, ValueError, AttributeError, OverflowError) as error:
            form = f"{FORM} with targets of {', '.join(map(str, sorted(values)))}"
            raise UserError(f"{path}, entry {index} is not {form} ({error!r:.120}): {entry!s:.100}") from None
    return Labels(np.array(paths), targets, boxes)


def box_edges(box: list[float], max_pixels: float) -> list[int]:
    """Return a box's edges as Pillow's crop rounds them; ValueError unless it has 1 to max_pixels pixels."""
    x, y, w, h = box
    if not math.isfinite(x + y + w + h):
        raise ValueError(f"the box {box!s:.50} has a number that is not finite")
    left, top, right, bottom = edges = [round(edge) for edge in (x, y, x + w, y + h)]
    if min(right - left, bottom - top) < 1:
        raise ValueError(f"the box {box!s:.50} is less than a pixel wide or high")
    if (right - left) * (bottom - top) > max_pixels:
        raise ValueError(f"the box {box!s:.50} is above --max_pixels {max_pixels}")
    return edges


def fingerprint(labels: Labels) -> str:
    """Return 12 hex digits of a hash of the targets, boxes and file names; the folders may change."""
    names = b"/".join(path.rpartition(b"/")[2] for path in labels.paths.tolist())
    boxes = b"" if labels.boxes is None else labels.boxes.tobytes()
    return hashlib.sha256(labels.targets.tobytes() + boxes + names).hexdigest()[:12]


def listed_file(folder: Path, name: str, source: Path) -> Path:
    """Return the path of a file that `source` lists; UserError if it is missing or not in the folder."""
    if Path(name).anchor or ".." in Path(name).parts:
        raise UserError(f"{source}: {name!r} points outside of {folder.name}/: download the file again")
    path = folder / name
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing, but {source} lists it: unpack the data set again")
    return path


def parse_args(parser: Parser) -> Namespace:
    """Parse a preparer's command line, with the options that `write_labels` reads."""
    parser.add_argument("--verify", action="store_true", help="decode every image once and list the bad ones")
    add_max_pixels(parser)
    return parser.parse_args()


def write_labels(folder: Path, classes: list[str], splits: dict, args: Namespace | None = None) -> None:
    """Check images with --verify, write a label file per split, {file name: entries}, and print counts."""
    if args and args.verify:
        verify(splits, args.max_pixels)
    counts = []
    for name, entries in splits.items():
        write_json_list(folder / name, entries)
        counts.append((np.array([entry["target"] for entry in entries]) == 1).sum(axis=0))
        print(f"{folder / name}: {len(entries)} images, {counts[-1].sum()} labels")
        if absent := ", ".join(name for name, count in zip(classes, counts[-1]) if not count):
            print(f"no image in {name} has {absent}")
    width = max(len("images of"), *map(len, classes))
    print(f"{'images of':{width}}", *(f"{Path(name).stem:>18}" for name in splits))
    for class_name, *row in zip(classes, *counts):
        print(f"{class_name:{width}}", *(f"{count:18}" for count in row))


def verify(splits: dict, max_pixels: int) -> None:
    """Decode all images as training does, and list the bad ones; UserError if there are any."""
    from utils.data.transforms import load_image  # imports torch, which the preparers do not need otherwise

    def error_message(path: str) -> str | None:
        try:
            load_image(path, max_pixels)
        except (UserError, OSError) as error:
            return str(error)

    paths = sorted({entry["img_path"] for entries in splits.values() for entry in entries})
    with ThreadPool(default_workers()) as pool:  # threads are enough: image decoders release the GIL
        messages = pool.imap(error_message, paths)
        bar = tqdm(messages, total=len(paths), desc="verify", unit="img", disable=None, leave=False)
        errors = list(filter(None, bar))
    print(f"decoded {len(paths)} images, {len(errors)} of them bad", *errors, sep="\n")
    if errors:
        raise UserError(f"{len(errors)} of {len(paths)} images are bad, first {errors[0]}")
