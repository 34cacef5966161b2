"""Make a data set from a table of your own with a row per image, or per image and label.

python utils/prepare_csv.py labels.csv --dataset mine [--img_dir photos] [--test_fraction 0.2]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import argparse
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.command_line.classes_of import add_classes_of, read_classes_of
from utils.data.bad_images import bad_images, parse_args
from utils.data.label_entries import ListedEntries, Splits
from utils.data.label_lists import SEPARATOR
from utils.data.labels import Listed, Paths, Targets, TargetsBuilder
from utils.data.new_data_set import (
    SPLITS,
    add_overwrite,
    check_overwrite,
    check_splits,
    new_folder,
    own_image,
    write_data_set,
)
from utils.data.stratification import stratify
from utils.data.tables import LabelTable, read_label_table
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.errors import UserError
from utils.runtime.paths import FileKey
from utils.runtime.progress import delayed_bar
from utils.runtime.script import run_script


@dataclass(slots=True)
class Picture:
    """An image that one or more rows of a table name; path: of the file, as the first row writes it."""

    path: str
    rows: list[int]


def main() -> None:
    args = parse_args(make_parser())
    folder = new_folder(args.dataset)
    check_overwrite(folder, args.overwrite)
    table = read_label_table(args.csv, args.separator, read_classes_of(args.classes_of))
    pictures = find_pictures(table, args.img_dir or args.csv.parent)
    bad = bad_images((picture.path for picture in pictures), args)
    pictures = [picture for picture in pictures if picture.path not in bad]
    if not pictures:
        raise UserError(f"--skip_bad leaves nothing of {args.csv}: all its images are bad")
    splits = split_pictures(pictures, table, args)
    write_data_set(folder, table.classes, splits)


def make_parser() -> Parser:
    parser = Parser(description="Make data/NAME/ from a table: label files and classes.json.")
    columns = "image,labels or image,CLASS,...; a column split may hold train, val or test"
    parser.add_argument("csv", type=given_path, metavar="FILE.csv", help=columns)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the new data set")
    parser.add_argument("--img_dir", type=given_path, help="folder of the images [default: the table's]")
    separator_help = f"text between the labels in one cell [default: {SEPARATOR}]"
    parser.add_argument("--separator", type=given_separator, metavar="TEXT", help=separator_help)
    val_help = "share of each class in val.json, on which main.py chooses the best epoch; 0: no val.json"
    parser.add_argument("--val_fraction", type=number(float, 0, high=1), default=0.2, help=val_help)
    test_share = number(float, 0, low_allowed=False, high=1)
    test_help = "share of each class in test.json; neither share counts with a column split or --classes_of"
    parser.add_argument("--test_fraction", type=test_share, default=0.2, help=test_help)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the random split")
    add_classes_of(parser)
    add_overwrite(parser)
    return parser


def given_separator(text: str) -> str:
    """Parse the text between labels; an argparse type. Raises argparse's error for an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def find_pictures(table: LabelTable, folder: Path) -> list[Picture]:
    """Return the images of a table, each file once, however the rows write its name.

    Raises UserError if an image is missing or above the folder, or if it is in two splits.
    """
    pictures: dict[FileKey, Picture] = {}
    for row, name in enumerate(delayed_bar(table.images, "find images")):
        path, key = own_image(folder, name, f"{table.path}, line {table.lines[row]}")
        picture = pictures.setdefault(key, Picture(path.as_posix(), []))
        picture.rows.append(row)
        if table.splits:
            split, other = table.splits[picture.rows[0]], table.splits[row]
            if split != other:
                where = describe_rows(table, picture, row)
                raise UserError(f"{where}, in {split} and in {other}: an image belongs in one split")
    num_merged = len(table.lines) - len(pictures)
    if num_merged:
        print(f"{num_merged} rows name an image that an earlier row has: their labels are joined")
    return list(pictures.values())


def describe_rows(table: LabelTable, picture: Picture, row: int) -> str:
    """Return words that name the first row of an image, and another one."""
    lines = f"lines {table.lines[picture.rows[0]]} and {table.lines[row]}"
    return f"{table.path}: {lines} are one image, {picture.path}"


def merge_rows(pictures: list[Picture], table: LabelTable) -> Targets:
    """Return the targets of images; UserError if the rows of one contradict each other."""
    targets = TargetsBuilder(len(table.classes))
    for picture in delayed_bar(pictures, "labels"):
        first, *more = picture.rows
        labels = table.targets.listed(first)
        for row in more:
            other = table.targets.listed(row)
            if not table.has_lists and (fault := contradiction(labels, other, table.classes)):
                raise UserError(f"{describe_rows(table, picture, row)}, but {fault}: correct one of them")
            labels = join_labels(labels, other)
        targets.add(labels)
    return targets.build()


def join_labels(first: Listed, second: Listed) -> Listed:
    """Return the labels that one or both of two rows of an image have."""
    positives = {*first.positives, *second.positives}
    if first.negatives is None or second.negatives is None:
        return Listed(sorted(positives), None)
    return Listed(sorted(positives), sorted({*first.negatives, *second.negatives}))


def contradiction(first: Listed, second: Listed, classes: list[str]) -> str | None:
    """Return words that name a class that is positive in one row of an image and negative in another one."""
    values = dict.fromkeys(denied(first, second), "1 and 0") | dict.fromkeys(denied(second, first), "0 and 1")
    if not values:
        return None
    c = min(values)
    return f"{classes[c]} is {values[c]}"


def denied(labels: Listed, other: Listed) -> set[int]:
    """Return the positives of a row that are negative in another one."""
    if other.negatives is None:
        return set(labels.positives) - set(other.positives)
    return set(labels.positives) & set(other.negatives)


def split_pictures(pictures: list[Picture], table: LabelTable, args: Namespace) -> Splits:
    """Return the entries of each label file; UserError if nothing is left for a needed one."""
    targets = merge_rows(pictures, table)
    if table.splits:
        names = np.array([table.splits[picture.rows[0]] for picture in pictures])
        cause = "the column split"
    elif args.classes_of:
        names = np.full(len(pictures), "test")
        cause = str(args.csv)
    else:
        names = random_splits(targets, args)
        cause = f"--test_fraction {args.test_fraction:g}"
    splits = {}
    for split in SPLITS:
        rows = np.flatnonzero(names == split)
        paths = Paths.of(pictures[row].path for row in rows)
        splits[f"{split}.json"] = ListedEntries(paths, targets.select(rows))
    return check_splits(splits, cause, may_lack_training=args.classes_of is not None)


def random_splits(targets: Targets, args: Namespace) -> np.ndarray:
    """Return the split of each image: the given shares of each class are val and test, the rest train.

    Raises UserError if the shares leave nothing to train on.
    """
    if args.val_fraction + args.test_fraction >= 1:
        raise UserError(f"--val_fraction {args.val_fraction:g} and --test_fraction leave nothing to train on")
    splits = np.full(len(targets), "train")
    share_left = 1.0
    for name, fraction in (("test", args.test_fraction), ("val", args.val_fraction)):
        rest = np.flatnonzero(splits == "train")
        held_out = stratify(targets.select(rest), fraction / share_left, args.seed)
        splits[rest[held_out]] = name
        share_left -= fraction
    return splits


if __name__ == "__main__":
    run_script(main)
