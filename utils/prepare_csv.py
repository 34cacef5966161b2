"""Make a data set from a table of your own with a row per image.

python utils/prepare_csv.py labels.csv --dataset mine [--img_dir photos] [--test_fraction 0.2]
"""

import csv
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.data.classes import check_names
from utils.data.datasets import DATASETS, is_folder_name
from utils.data.label_files import UNKNOWN
from utils.data.preparing import Entry, Splits, parse_args, verify, write_labels
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_folder, write_json_list
from utils.runtime.script import run_script

CELLS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": UNKNOWN}  # pandas writes 1.0 if other cells are empty
SPLITS = ("train", "val", "test")


class Row(NamedTuple):
    """A row of a table, and the line of the file that it ends on."""

    line: int
    cells: list[str]


def main() -> None:
    args = parse_args(make_parser())
    folder = new_folder(args.dataset)
    header, rows = read_table(args.csv)
    check_overwrite(folder, args.overwrite)
    given_splits = take_splits(header, rows, args.csv)
    classes, targets = read_targets(header, rows, args.separator, args.csv)
    paths = find_images(rows, args.img_dir or args.csv.parent, args.csv)
    entries: list[Entry] = [{"target": target, "img_path": path} for target, path in zip(targets, paths)]
    if given_splits:
        splits = group_by_split(entries, given_splits, cause="the column split")
    else:
        drawn_splits = random_splits(np.array(targets) == 1, args)
        splits = group_by_split(entries, drawn_splits, cause=f"--test_fraction {args.test_fraction:g}")
    if args.verify:
        verify(splits, args.max_pixels)
    write_data_set(folder, classes, splits)
    print_unknown(targets)


def make_parser() -> Parser:
    parser = Parser(description="Make data/NAME/ from a table: label files and classes.json.")
    columns = "image,labels or image,CLASS,...; a column split may hold train, val or test"
    parser.add_argument("csv", type=given_path, metavar="FILE.csv", help=columns)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the new data set")
    parser.add_argument("--img_dir", type=given_path, help="folder of the images [default: the table's]")
    parser.add_argument("--separator", default=";", help="text between the labels in one cell")
    val_help = "share of each class in val.json, on which main.py chooses the best epoch; 0: no val.json"
    parser.add_argument("--val_fraction", type=number(float, 0, high=1), default=0.2, help=val_help)
    test_share = number(float, 0, low_allowed=False, high=1)
    test_help = "share of each class in test.json; neither share counts if there is a column split"
    parser.add_argument("--test_fraction", type=test_share, default=0.2, help=test_help)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the random split")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    return parser


def new_folder(name: str) -> Path:
    """Return data/NAME; UserError if it is the name of a built-in data set, or not a folder name."""
    if name in DATASETS or not is_folder_name(name):
        raise UserError(f"--dataset {name}: choose a folder name without /, other than {', '.join(DATASETS)}")
    folder = Path("data", name)
    check_folder(folder, "--dataset")
    return folder


def check_overwrite(folder: Path, overwrite: bool) -> None:
    """Raise UserError if the folder holds a data set, unless it may be replaced."""
    if not overwrite and any((folder / f"{split}.json").exists() for split in SPLITS):
        raise UserError(f"{folder} already holds a data set: choose another name or add --overwrite")


def group_by_split(entries: list[Entry], splits: list[str], cause: str) -> Splits:
    """Return the entries of each label file; UserError, naming the cause, if nothing is left for one."""
    grouped: Splits = {f"{split}.json": [] for split in SPLITS}
    for entry, split in zip(entries, splits):
        grouped[f"{split}.json"].append(entry)
    if not grouped["train.json"] or not grouped["test.json"]:
        raise UserError(f"{cause} leaves no images to train on or to test on: add images")
    if not grouped["val.json"]:
        print("no images for val.json: main.py will choose the best epoch on the test images")
        del grouped["val.json"]
    return grouped


def write_data_set(folder: Path, classes: list[str], splits: Splits) -> None:
    """Write classes.json and the label files, in place of those of an earlier data set."""
    # After an interruption test.json is missing, so nothing starts, and no labels are for other classes.
    for split in SPLITS:
        (folder / f"{split}.json").unlink(missing_ok=True)
    write_json_list(folder / "classes.json", classes)
    write_labels(folder, classes, splits)


def print_unknown(targets: list[list[int]]) -> None:
    """Say how many labels are unknown, if any are."""
    num_labels = sum(len(target) for target in targets)
    num_unknown = sum(target.count(UNKNOWN) for target in targets)
    if num_unknown:
        print(f"{num_unknown} of {num_labels} labels are unknown: they count in no loss and no metric")


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of a table. Raises UserError if it is malformed."""
    fault = f"{path} is not a table in UTF-8"
    with open(path, encoding="utf-8-sig", newline="") as file, reporting_errors(fault):
        lines = read_lines(list(file))
    header = lines[0].cells if lines else []
    rows = lines[1:]
    if len(header) < 2 or header[0] != "image" or not rows:
        raise UserError(f"{path} needs rows below a header image,labels or image,CLASS,...: {header!s:.99}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}")
    return header, rows


def read_lines(text: list[str]) -> list[Row]:
    """Split the lines of a table into rows, without empty ones; the first row is the header."""
    # Spreadsheets separate cells by semicolons in countries that write decimals with a comma.
    first_line = text[0] if text else ""
    delimiter = next((mark for mark in ",;\t" if mark in first_line), ",")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    rows = []
    for cells in reader:
        if any(cells):
            rows.append(Row(reader.line_num, [cell.strip() for cell in cells]))
    return rows


def take_splits(header: list[str], rows: list[Row], path: Path) -> list[str]:
    """Take the column split out of a table and return it, [] if there is none; UserError for other words."""
    if "split" not in header:
        return []
    column = header.index("split")
    for line, cells in rows:
        if cells[column] not in SPLITS:
            raise UserError(f"{path}, line {line}: split is {cells[column]!r:.50}, not train, val or test")
    del header[column]
    return [cells.pop(column) for _, cells in rows]


def read_targets(
    header: list[str], rows: list[Row], separator: str, path: Path
) -> tuple[list[str], list[list[int]]]:
    """Return the class names and the targets (N, C) of a table.

    The table has a column of label lists, or a column per class. Raises UserError for a cell or a class name
    that is malformed.
    """
    if header[1:] == ["labels"]:
        return read_label_lists(rows, separator, path)
    return read_class_columns(header, rows, path)


def read_label_lists(rows: list[Row], separator: str, path: Path) -> tuple[list[str], list[list[int]]]:
    """Return the class names, sorted, and the targets of a table with a column of label lists."""
    label_sets = []
    with reporting_errors("--separator"):
        for _, cells in rows:
            labels = {label.strip() for label in cells[1].split(separator)}
            label_sets.append(labels - {""})
    classes = check_names(sorted(set().union(*label_sets)), path)
    return classes, [[int(name in labels) for name in classes] for labels in label_sets]


def read_class_columns(header: list[str], rows: list[Row], path: Path) -> tuple[list[str], list[list[int]]]:
    """Return the class names and the targets of a table with a column per class."""
    classes = header[1:]
    targets = []
    for line, (_, *cells) in rows:
        for name, cell in zip(classes, cells):
            if cell not in CELLS:
                raise UserError(f"{path}, line {line}: {name} is {cell!r:.50}, but must be 1, 0 or empty")
        targets.append([CELLS[cell] for cell in cells])
    return check_names(classes, path), targets


def find_images(rows: list[Row], folder: Path, table: Path) -> list[str]:
    """Return the image paths; raise UserError if one is missing, above the folder or repeated."""
    lines: dict[str, int] = {}
    for line, (name, *_) in rows:
        path = (folder / name).as_posix()
        is_above = os.path.normpath(name).split(os.sep)[0] == ".."
        if is_above or not os.path.isfile(path):
            raise UserError(f"{table}, line {line}: no image {path} in {folder}: correct it, or --img_dir")
        if path in lines:
            raise UserError(f"{table}: {path} has lines {lines[path]} and {line}: merge them into one")
        lines[path] = line
    return list(lines)


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
