"""Make a data set from a table of your own with a row per image.

python utils/prepare_csv.py labels.csv --dataset mine [--img_dir photos] [--val_fraction 0.2]
"""

import csv
import os
import sys
from argparse import Namespace
from collections import Counter
from itertools import compress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.label_files import UNKNOWN, check_names, write_labels
from utils.runtime.cli import Parser, UserError, given_path, number, parsing, run_script
from utils.runtime.files import check_folder, write_json_list
from utils.verify import add_verify_arguments, verify

BUILT_IN = ("voc07", "voc12", "coco", "coco2017", "wider", "shapes")
CELLS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": UNKNOWN}  # pandas writes 1.0 if other cells are empty
Row = tuple[int, list[str]]  # line number and cells


def main() -> None:
    args = parse_args()
    folder = Path("data", args.dataset)
    check_folder(folder, "--dataset")
    if not args.overwrite and any((folder / name).exists() for name in ("train.json", "test.json")):
        raise UserError(f"{folder} already holds a data set: choose another name or add --overwrite")
    header, rows = read_table(args.csv)
    if header[1:] == ["labels"]:
        classes, targets = read_label_lists(rows, args.separator)
    else:
        classes, targets = header[1:], [read_cells(row, header, args.csv) for row in rows]
    check_names(classes, args.csv)
    paths = find_images(rows, args.img_dir or args.csv.parent, args.csv)
    entries = [{"target": target, "img_path": path} for target, path in zip(targets, paths)]
    positives = np.array(targets) == 1
    held_out = split(positives, args.val_fraction, args.seed)
    if held_out.all() or not held_out.any():
        share = f"--val_fraction {args.val_fraction:g} of {len(rows)} images"
        raise UserError(f"{share} leaves none to train or to test on: change it, or add rows to the table")
    chosen = {"train.json": ~held_out, "test.json": held_out}
    splits = {name: list(compress(entries, mask)) for name, mask in chosen.items()}
    verify(splits, args)
    write_json_list(folder / "classes.json", classes)
    write_labels(folder, classes, splits)
    for name, mask in chosen.items():
        absent = list(compress(classes, ~positives[mask].any(axis=0)))
        if absent:
            print(f"no image in {name} has {', '.join(absent)}")
    num_unknown = sum(target.count(UNKNOWN) for target in targets)
    print(f"{num_unknown} of {positives.size} labels are unknown: they count in no loss and no metric")


def parse_args() -> Namespace:
    parser = Parser(description="Make data/NAME/ from a table: train.json, test.json and classes.json.")
    columns = "a table with the columns image and labels, or image and a column of 1, 0 or nothing per class"
    parser.add_argument("csv", type=given_path, metavar="FILE.csv", help=columns)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the new data set")
    parser.add_argument("--img_dir", type=given_path, help="folder of the images [default: the table's]")
    parser.add_argument("--separator", default=";", help="text between the labels in one cell")
    fraction = number(float, 0, low_allowed=False, high=1)
    parser.add_argument("--val_fraction", type=fraction, default=0.2, help="share of each class in test.json")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the random split")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    add_verify_arguments(parser)
    args = parser.parse_args()
    name = args.dataset
    if name in ("", *BUILT_IN) or name.startswith(".") or Path(name).name != name:
        raise UserError(
            f"--dataset {name}: choose a folder name (not a path) other than {', '.join(BUILT_IN)}"
        )
    if not args.separator:
        raise UserError("--separator cannot be empty")
    return args


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of a table. Raises UserError if it is malformed."""
    fault = f"{path} is not a table of comma-separated values in UTF-8"
    with parsing(fault), open(path, encoding="utf-8-sig", newline="") as file:
        first_line = file.readline()
        file.seek(0)
        # Spreadsheets separate cells by semicolons in countries that write decimals with a comma.
        delimiter = next((mark for mark in ",;\t" if mark in first_line), ",")
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise UserError(f"{path} needs a header, image,labels or image and the class names, and rows below")
    (_, header), *rows = lines
    if header[0] != "image":
        raise UserError(f"{path}: the first column must be called image, not {header[0]!r:.50}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}")
    return header, rows


def read_label_lists(rows: list[Row], separator: str) -> tuple[list[str], list[list[int]]]:
    """Return the sorted class names and the targets of rows with the cells image and labels."""
    lists = [{label.strip() for label in cells[1].split(separator)} - {""} for _, cells in rows]
    classes = sorted(set().union(*lists))
    return classes, [[int(name in labels) for name in classes] for labels in lists]


def read_cells(row: Row, header: list[str], path: Path) -> list[int]:
    """Return the target of a row with a cell per class. Raises UserError if a cell is not 1, 0 or empty."""
    line, cells = row
    for name, cell in zip(header[1:], cells[1:]):
        if cell not in CELLS:
            wrong = f"{path}, line {line}: {name} is {cell!r:.50}, but must be 1, 0 or nothing"
            raise UserError(f"{wrong}; lists of labels need a table of only image and labels")
    return [CELLS[cell] for cell in cells[1:]]


def find_images(rows: list[Row], folder: Path, table: Path) -> list[str]:
    """Return the image paths; raise UserError if one is missing, outside of the folder or repeated."""
    paths = []
    for line, (name, *_) in rows:
        if os.path.normpath(name).split(os.sep)[0] == "..":
            raise UserError(f"{table}, line {line}: {name} leads out of {folder}: set another --img_dir")
        paths.append((folder / name).as_posix())
        if not name or not os.path.isfile(paths[-1]):
            raise UserError(f"{table}, line {line}: there is no image {paths[-1]}: set another --img_dir")
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise UserError(f"{table}: {path} has {count} rows; merge them into one")
    return paths


def split(positives: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose the images to hold out, bool (N,), so that both parts have the same share of each class.

    positives: (N, C) bool. This is the iterative stratification of Sechidis et al. (2011): it takes the class
    with the fewest images left and holds out as many of them as the share still lacks. If that is not a whole
    number, chance decides about the last image. It never holds out all images of a class.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(positives))
    held_out, left = np.zeros(len(positives), bool), np.ones(len(positives), bool)
    while left.any():
        counts = positives[left].sum(axis=0)
        members = np.ones(len(positives), bool)  # the last round takes the images without a class
        if counts.any():
            members = positives[:, np.where(counts > 0, counts, len(positives) + 1).argmin()]
        candidates = order[(left & members)[order]]
        lacking = max(0, fraction * members.sum() - (held_out & members).sum())
        num_held = int(lacking) + (rng.random() < lacking % 1)
        has_training_image = (members & ~held_out & ~left).any()
        held_out[candidates[: min(num_held, len(candidates) - (not has_training_image))]] = True
        left &= ~members
    return held_out


if __name__ == "__main__":
    run_script(main)
