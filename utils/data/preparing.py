"""What the preparers share: options, checks of the files that are listed, and writing label files.

It needs no torch, except to decode images with --verify.
"""

import os
from argparse import Namespace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from tqdm import tqdm

from utils.data.drawing import DrawnObject
from utils.runtime.arguments import Parser, add_max_pixels
from utils.runtime.errors import UserError
from utils.runtime.files import write_json_list
from utils.runtime.workers import default_workers


class Entry(TypedDict):
    """An entry of a label file; what the numbers in `target` (C) mean depends on the data set.

    bbox: x, y, w, h of the part of the image to cut out. objects: what a scene of the data set shapes shows.
    """

    target: list[int]
    img_path: str
    bbox: NotRequired[list[float]]
    objects: NotRequired[list[DrawnObject]]


Splits = dict[str, list[Entry]]  # the entries of each label file or split, by its name


def parse_args(parser: Parser) -> Namespace:
    """Parse a preparer's command line, with the options that `verify` needs."""
    parser.add_argument("--verify", action="store_true", help="decode every image once and list the bad ones")
    add_max_pixels(parser)
    return parser.parse_args()


def listed_file(folder: Path, name: str, source: Path) -> Path:
    """Return the path of a file that `source` lists; UserError if it is missing or not in the folder."""
    if Path(name).anchor or ".." in Path(name).parts:
        raise UserError(f"{source}: {name!r} points outside of {folder.name}/: download the file again")
    path = folder / name
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing, but {source} lists it: unpack the data set again")
    return path


def write_labels(folder: Path, classes: list[str], splits: Splits) -> None:
    """Write a label file for each split, and print how many images of each class it has."""
    counts = {}
    for name, entries in splits.items():
        write_json_list(folder / name, entries)
        counts[name] = (np.array([entry["target"] for entry in entries]) == 1).sum(axis=0)
        print(f"{folder / name}: {len(entries)} images, {counts[name].sum()} labels")
        absent = [class_name for class_name, count in zip(classes, counts[name]) if count == 0]
        if absent:
            print(f"no image in {name} has {', '.join(absent)}")
    print_counts(classes, counts)


def print_counts(classes: list[str], counts: dict[str, np.ndarray]) -> None:
    """Print a table with a row for each class and a column for each label file, of counts (C,)."""
    head = "images of"
    width = max(len(head), *map(len, classes))
    print(f"{head:{width}}", *(f"{Path(name).stem:>18}" for name in counts))
    for class_name, *row in zip(classes, *counts.values()):
        print(f"{class_name:{width}}", *(f"{count:18}" for count in row))


def verify(splits: Splits, max_pixels: int) -> None:
    """Decode all images as training does, and list the bad ones; UserError if there are any."""
    from utils.data.decoding import load_image  # imports torch

    def error_message(path: str) -> str | None:
        try:
            load_image(path, max_pixels)
        except (UserError, OSError) as error:
            return str(error)
        return None

    paths = sorted({entry["img_path"] for entries in splits.values() for entry in entries})
    with ThreadPool(default_workers()) as pool:  # threads are enough: image decoders release the GIL
        messages = pool.imap(error_message, paths)
        bar = tqdm(messages, total=len(paths), desc="verify", unit="img", disable=None, leave=False)
        errors = [message for message in bar if message is not None]
    print(f"decoded {len(paths)} images, {len(errors)} of them bad", *errors, sep="\n")
    if errors:
        raise UserError(f"{len(errors)} of {len(paths)} images are bad, first {errors[0]}")
