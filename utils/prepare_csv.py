"""Make a data set from a table of your own with a row per image.

python utils/prepare_csv.py labels.csv --dataset mine [--img_dir photos] [--test_fraction 0.2]
"""

import csv
import os
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.data.classes import check_names
from utils.data.datasets import DATASETS
from utils.data.label_files import UNKNOWN
from utils.data.preparing import parse_args, verify, write_labels
from utils.runtime.cli import Parser, UserError, given_path, number, reporting_errors, run_script
from utils.runtime.files import check_folder, write_json_list

CELLS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": UNKNOWN}  # pandas writes 1.0 if other cells are empty
SPLITS = ("train", "val", "test")
Row = tuple[int, list[str]]  # line number and cells


def main() -> None:
    parser = Parser(description="Make data/NAME/ from a table: label files and classes.json.")
    columns = "image,labels or image,CLASS,...; a column split may hold train, val or test"
    parser.add_argument("csv", type=given_path, metavar="FILE.csv", help=columns)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the new data set")
    parser.add_argument("--img_dir", type=given_path, help="folder of the images [default: the table's]")
    parser.add_argument("--separator", default=";", help="text between the labels in one cell")
    val_help = "share of each class in val.json, on which main.py chooses the best epoch; 0: no val.json"
    parser.add_argument("--val_fraction", type=number(float, 0, high=1), default=0.2, help=val_help)
    test_help = "share of each class in test.json; neither share counts if there is a column split"
    parser.add_argument("--test_fraction", type=number(float, 0, False, 1), default=0.2, help=test_help)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the random split")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    args = parse_args(parser)
    folder, name = Path("data", args.dataset), args.dataset
    if name in DATASETS or name.startswith(".") or folder.name != name:
        raise UserError(f"--dataset {name}: choose a folder name without /, other than {', '.join(DATASETS)}")
    check_folder(folder, "--dataset")
    header, rows = read_table(args.csv)
    if not args.overwrite and any((folder / f"{part}.json").exists() for part in SPLITS):
        raise UserError(f"{folder} already holds a data set: choose another name or add --overwrite")
    column = take_splits(header, rows, args.csv)
    classes, targets = read_targets(header, rows, args.separator, args.csv)
    paths = find_images(rows, args.img_dir or args.csv.parent, args.csv)
    positives = np.array(targets) == 1
    splits = {f"{part}.json": [] for part in SPLITS}
    for target, path, part in zip(targets, paths, column or random_splits(positives, args)):
        splits[f"{part}.json"].append({"target": target, "img_path": path})
    if not splits["train.json"] or not splits["test.json"]:
        cause = "the column split" if column else f"--test_fraction {args.test_fraction:g}"
        raise UserError(f"{cause} leaves no images to train on or to test on: add images")
    if not splits["val.json"]:
        print("no images for val.json: main.py will choose the best epoch on the test images")
        del splits["val.json"]
    if args.verify:
        verify(splits, args.max_pixels)
    # An interruption leaves no test.json, without which nothing starts, and no labels of other classes.
    for part in SPLITS:
        (folder / f"{part}.json").unlink(missing_ok=True)
    write_json_list(folder / "classes.json", classes)
    write_labels(folder, classes, splits)
    if num_unknown := sum(target.count(UNKNOWN) for target in targets):
        print(f"{num_unknown} of {positives.size} labels are unknown: they count in no loss and no metric")


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of a table. Raises UserError if it is malformed."""
    fault = f"{path} is not a table in UTF-8"
    with open(path, encoding="utf-8-sig", newline="") as file, reporting_errors(fault):
        text = list(file)
        # Spreadsheets separate cells by semicolons in countries that write decimals with a comma.
        delimiter = next((mark for mark in ",;\t" if mark in "".join(text[:1])), ",")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    header, rows = lines[0][1] if lines else [], lines[1:]
    if len(header) < 2 or header[0] != "image" or not rows:
        raise UserError(f"{path} needs rows below a header image,labels or image,CLASS,...: {header!s:.99}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}")
    return header, rows


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


def read_targets(header: list[str], rows: list[Row], separator: str, path: Path) -> tuple[list[str], list]:
    """Return the class names and the targets, from a column of label lists or from a column per class."""
    if header[1:] == ["labels"]:
        with reporting_errors("--separator"):
            lists = [{label.strip() for label in cells[1].split(separator)} - {""} for _, cells in rows]
        classes = check_names(sorted(set().union(*lists)), path)
        return classes, [[int(name in labels) for name in classes] for labels in lists]
    for line, cells in rows:
        for name, cell in zip(header[1:], cells[1:]):
            if cell not in CELLS:
                raise UserError(f"{path}, line {line}: {name} is {cell!r:.50}, but must be 1, 0 or empty")
    return check_names(header[1:], path), [[CELLS[cell] for cell in cells[1:]] for _, cells in rows]


def find_images(rows: list[Row], folder: Path, table: Path) -> list[str]:
    """Return the image paths; raise UserError if one is missing, above the folder or repeated."""
    lines = {}
    for line, (name, *_) in rows:
        path = (folder / name).as_posix()
        if os.path.normpath(name).split(os.sep)[0] == ".." or not os.path.isfile(path):
            raise UserError(f"{table}, line {line}: no image {path} in {folder}: correct it, or --img_dir")
        if path in lines:
            raise UserError(f"{table}: {path} has lines {lines[path]} and {line}: merge them into one")
        lines[path] = line
    return list(lines)


def random_splits(positives: np.ndarray, args: Namespace) -> list[str]:
    """Return the split of each image (N,): the two shares of each class for val and test, the rest train."""
    if args.val_fraction + args.test_fraction >= 1:
        raise UserError(f"--val_fraction {args.val_fraction:g} and --test_fraction leave nothing to train on")
    splits, left = np.full(len(positives), "train"), 1.0
    for name, fraction in (("test", args.test_fraction), ("val", args.val_fraction)):
        rest = np.flatnonzero(splits == "train")
        splits[rest[stratify(positives[rest], fraction / left, args.seed)]] = name
        left -= fraction
    return splits.tolist()


def stratify(positives: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which images to hold out, bool (N,): the same share of each class, but never a whole class."""
    # The iterative stratification of Sechidis et al. (2011): it takes the class with the fewest images left
    # and holds out as many of them as the share still lacks. A fraction of an image is rounded at random.
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(positives))
    held_out, left = np.zeros(len(positives), bool), np.ones(len(positives), bool)
    while left.any():
        counts = positives[left].sum(axis=0)
        rarest = np.where(counts > 0, counts, len(positives) + 1).argmin()
        # The last round takes the images without a class.
        members = positives[:, rarest] if counts.any() else np.ones_like(left)
        candidates = order[(left & members)[order]]
        lacking = max(0, fraction * members.sum() - (held_out & members).sum())
        num_held = int(lacking) + (rng.random() < lacking % 1)
        has_training_image = (members & ~held_out & ~left).any()
        held_out[candidates[: min(num_held, len(candidates) - (not has_training_image))]] = True
        left &= ~members
    return held_out


if __name__ == "__main__":
    run_script(main)
