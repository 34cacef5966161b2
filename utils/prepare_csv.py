"""Make a data set from a table of your own with a row per image, or per image and label.

python utils/prepare_csv.py labels.csv --dataset mine [--img_dir photos] [--test_fraction 0.2]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.commands.classes_of import add_classes_of, read_classes_of
from utils.data.label_files import UNKNOWN
from utils.data.new_data_set import (
    SPLITS,
    add_overwrite,
    check_overwrite,
    check_splits,
    new_folder,
    own_image,
    write_data_set,
)
from utils.data.preparing import Entry, Splits, bad_images, parse_args
from utils.data.tables import SEPARATOR, LabelTable, read_label_table
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.errors import UserError
from utils.runtime.paths import FileKey
from utils.runtime.script import run_script


@dataclass
class Picture:
    """An image that one or more rows of a table name.

    line: of its first row. path: of the file, as that row writes it. split: of SPLITS, or None. target (C).
    """

    line: int
    path: str
    split: str | None
    target: list[int]


def main() -> None:
    args = parse_args(make_parser())
    folder = new_folder(args.dataset)
    table = read_label_table(args.csv, args.separator, read_classes_of(args.classes_of))
    check_overwrite(folder, args.overwrite)
    pictures = find_pictures(table, args.img_dir or args.csv.parent)
    bad = bad_images((picture.path for picture in pictures), args)
    pictures = [picture for picture in pictures if picture.path not in bad]
    if not pictures:
        raise UserError(f"--skip_bad leaves nothing of {args.csv}: all its images are bad")
    splits = split_pictures(pictures, args)
    write_data_set(folder, table.classes, splits)


def make_parser() -> Parser:
    parser = Parser(description="Make data/NAME/ from a table: label files and classes.json.")
    columns = "image,labels or image,CLASS,...; a column split may hold train, val or test"
    parser.add_argument("csv", type=given_path, metavar="FILE.csv", help=columns)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the new data set")
    parser.add_argument("--img_dir", type=given_path, help="folder of the images [default: the table's]")
    separator_help = f"text between the labels in one cell [default: {SEPARATOR}]"
    parser.add_argument("--separator", metavar="TEXT", help=separator_help)
    val_help = "share of each class in val.json, on which main.py chooses the best epoch; 0: no val.json"
    parser.add_argument("--val_fraction", type=number(float, 0, high=1), default=0.2, help=val_help)
    test_share = number(float, 0, low_allowed=False, high=1)
    test_help = "share of each class in test.json; neither share counts with a column split or --classes_of"
    parser.add_argument("--test_fraction", type=test_share, default=0.2, help=test_help)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the random split")
    add_classes_of(parser)
    add_overwrite(parser)
    return parser


def find_pictures(table: LabelTable, folder: Path) -> list[Picture]:
    """Return the images of a table, each file once: rows of one file are merged, however they write its name.

    Raises UserError if an image is missing or above the folder, or if rows of one image disagree.
    """
    splits: Sequence[str | None] = table.splits or [None] * len(table.lines)
    pictures: dict[FileKey, Picture] = {}
    for line, name, split, target in zip(table.lines, table.images, splits, table.targets):
        path, key = own_image(folder, name, f"{table.path}, line {line}")
        picture = Picture(line, path.as_posix(), split, target)
        first = pictures.setdefault(key, picture)
        if first is not picture:
            merge(first, picture, table)
    num_merged = len(table.lines) - len(pictures)
    if num_merged:
        print(f"{num_merged} rows name an image that an earlier row has: their labels are joined")
    return list(pictures.values())


def merge(first: Picture, again: Picture, table: LabelTable) -> None:
    """Add the labels of another row of an image to those of its first row; UserError if the rows disagree."""
    where = f"{table.path}: lines {first.line} and {again.line} are one image, {first.path}"
    if first.split != again.split:
        raise UserError(f"{where}, in {first.split} and in {again.split}: an image belongs in one split")
    for c, (value, other) in enumerate(zip(first.target, again.target)):
        if table.has_lists:
            first.target[c] = max(value, other)
        elif value == UNKNOWN:
            first.target[c] = other
        elif other not in (value, UNKNOWN):
            raise UserError(f"{where}, but {table.classes[c]} is {value} and {other}: correct one of them")


def split_pictures(pictures: list[Picture], args: Namespace) -> Splits:
    """Return the entries of each label file; UserError if nothing is left for a needed one."""
    entries: list[Entry] = [{"target": picture.target, "img_path": picture.path} for picture in pictures]
    names = [picture.split for picture in pictures if picture.split is not None]
    if names:
        cause = "the column split"
    elif args.classes_of:
        names = ["test"] * len(pictures)
        cause = str(args.csv)
    else:
        positives = np.array([picture.target for picture in pictures]) == 1
        names = random_splits(positives, args)
        cause = f"--test_fraction {args.test_fraction:g}"
    splits: Splits = {f"{split}.json": [] for split in SPLITS}
    for entry, name in zip(entries, names):
        splits[f"{name}.json"].append(entry)
    return check_splits(splits, cause, may_lack_training=args.classes_of is not None)


def random_splits(positives: np.ndarray, args: Namespace) -> list[str]:
    """Return the split of each image: the given shares of each class are val and test, the rest train.

    positives: bool (N, C). Raises UserError if the shares leave nothing to train on.
    """
    if args.val_fraction + args.test_fraction >= 1:
        raise UserError(f"--val_fraction {args.val_fraction:g} and --test_fraction leave nothing to train on")
    splits = np.full(len(positives), "train")
    share_left = 1.0
    for name, fraction in (("test", args.test_fraction), ("val", args.val_fraction)):
        rest = np.flatnonzero(splits == "train")
        held_out = stratify(positives[rest], fraction / share_left, args.seed)
        splits[rest[held_out]] = name
        share_left -= fraction
    return splits.tolist()


def stratify(positives: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which images to hold out, bool (N,): the same share of each class, but never a whole class.

    positives: bool (N, C). This is the iterative stratification of Sechidis et al. (2011): it takes the
    class with the fewest images left, holds out as many of them as its share still lacks, and so on.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(positives))
    held_out = np.zeros(len(positives), bool)
    left = np.ones(len(positives), bool)
    while left.any():
        members = rarest_class(positives, left)
        is_candidate = left & members
        candidates = order[is_candidate[order]]  # in random order
        lacking = max(0, fraction * members.sum() - (held_out & members).sum())
        num_held = int(lacking)
        if rng.random() < lacking % 1:  # a fraction of an image is rounded at random
            num_held += 1
        has_training_image = (members & ~held_out & ~left).any()
        if not has_training_image:
            num_held = min(num_held, len(candidates) - 1)
        held_out[candidates[:num_held]] = True
        left &= ~members
    return held_out


def rarest_class(positives: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the images, bool (N,), of the class that has the fewest images left, but at least one.

    positives: bool (N, C). left: bool (N,). If no class has an image left, return all images.
    """
    counts = positives[left].sum(axis=0)
    if not counts.any():
        return np.ones_like(left)
    counts_of_present = np.where(counts > 0, counts, len(positives) + 1)
    return positives[:, counts_of_present.argmin()]


if __name__ == "__main__":
    run_script(main)
