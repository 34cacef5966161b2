"""Make a data set of one's own from a table with a row per image.

python utils/prepare_csv.py labels.csv --dataset mine [--img_dir photos] [--val_fraction 0.2]
"""

import argparse
import csv
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.label_files import check_names, write_labels
from utils.runtime.cli import Parser, UserError, given_path, number, run
from utils.runtime.files import check_folder, write_json_list
from utils.verify import add_verify_arguments, verify

BUILT_IN = ("voc07", "voc12", "coco", "coco2017", "wider", "shapes")
UNKNOWN = 99  # a target that counts in no loss and no metric
CELLS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": UNKNOWN}  # pandas writes 1.0 where others are empty


def main() -> None:
    args = parse_args()
    folder = Path("data", args.dataset)
    check_folder(folder, "--dataset")
    if not args.overwrite and any((folder / name).exists() for name in ("train.json", "test.json")):
        raise UserError(f"{folder} holds a data set already: name another, or add --overwrite")
    header, rows = read_table(args.csv)
    if header[1:] == ["labels"]:
        classes, targets = read_label_lists(rows, args.separator)
    else:
        classes, targets = header[1:], [read_cells(row, header, args.csv) for row in rows]
    check_names(classes, args.csv)
    paths = find_images(rows, args.img_dir or args.csv.parent, args.csv)
    entries = [{"target": target, "img_path": path} for target, path in zip(targets, paths)]
    verify(entries, args)
    held_out = split(np.array(targets) == 1, args.val_fraction, args.seed)
    if held_out.all() or not held_out.any():
        raise UserError(
            f"--val_fraction {args.val_fraction:g} of {len(rows)} images leaves none to train or to test on: "
            "give another, or a longer table"
        )
    splits = {
        "train.json": [entry for entry, test in zip(entries, held_out) if not test],
        "test.json": [entry for entry, test in zip(entries, held_out) if test],
    }
    write_json_list(folder / "classes.json", classes)
    write_labels(folder, classes, splits)
    unknown = sum(target.count(UNKNOWN) for target in targets)
    for purpose, entries in zip(("train", "test"), splits.values()):
        without = [name for c, name in enumerate(classes) if not any(e["target"][c] == 1 for e in entries)]
        if without:
            print(f"no image to {purpose} on has {', '.join(without)}")
    print(f"{unknown} of {len(rows) * len(classes)} labels are unknown: they count in no loss and no metric")


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Make data/NAME/ from a table: train.json, test.json and classes.json.")
    parser.add_argument(
        "csv",
        type=given_path,
        metavar="FILE.csv",
        help="columns image,labels, or image and one of 1, 0 or nothing (unknown) per class; with a header",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the data set")
    parser.add_argument(
        "--img_dir", type=given_path, help="folder that images are named from [default: the table's own]"
    )
    parser.add_argument(
        "--separator", default=";", help="what stands between labels in one cell [default: %(default)s]"
    )
    parser.add_argument(
        "--val_fraction",
        type=number(float, 0, low_allowed=False, high=1),
        default=0.2,
        help="share of the images held out as test.json, alike for every class [default: %(default)s]",
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="of the images held out [default: %(default)s]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is there")
    add_verify_arguments(parser)
    args = parser.parse_args()
    name = args.dataset
    if name in ("", *BUILT_IN) or name.startswith(".") or Path(name).name != name:
        raise UserError(f"--dataset {name}: give a name of its own, other than {', '.join(BUILT_IN)}")
    if not args.separator:
        raise UserError("--separator cannot be empty")
    return args


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a table and its rows, (line number, cells); UserError where it is no table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            # Where decimals have commas, tables have semicolons.
            delimiter = next((mark for mark in ",;\t" if mark in header), ",")
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} is no table of comma-separated values in UTF-8: {error}") from None
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise UserError(
            f"{path} needs a header, image,labels or image and the class names, and rows below it"
        )
    (_, header), *rows = lines
    if header[0] != "image":
        raise UserError(f"{path}: the first column must be called image, not {header[0]!r:.50}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} cells, where the header has {len(header)}")
    return header, rows


def read_label_lists(rows: list[tuple[int, list[str]]], separator: str) -> tuple[list[str], list[list[int]]]:
    """Return the classes, by name, and the targets of rows (image, labels with a separator between)."""
    lists = [{label.strip() for label in cells[1].split(separator)} - {""} for _, cells in rows]
    classes = sorted(set().union(*lists))
    return classes, [[int(name in labels) for name in classes] for labels in lists]


def read_cells(row: tuple[int, list[str]], header: list[str], path: Path) -> list[int]:
    """Return the target of a row with a cell per class: 1, 0 or, where it is empty, UNKNOWN."""
    line, cells = row
    for name, cell in zip(header[1:], cells[1:]):
        if cell not in CELLS:
            raise UserError(
                f"{path}, line {line}: {name} is {cell!r:.50}, which must be 1, 0 or nothing; a column of "
                "label lists is called labels, and stands alone"
            )
    return [CELLS[cell] for cell in cells[1:]]


def find_images(rows: list[tuple[int, list[str]]], folder: Path, path: Path) -> list[str]:
    """Return the rows' image paths; UserError where one is missing, leads out of folder or comes twice."""
    paths = []
    for line, (name, *_) in rows:
        if os.path.normpath(name).split(os.sep)[0] == "..":
            raise UserError(f"{path}, line {line}: {name} leads out of {folder}: give another --img_dir")
        paths.append((folder / name).as_posix())
        if not name or not os.path.isfile(paths[-1]):
            raise UserError(
                f"{path}, line {line}: there is no image {paths[-1]}: name its folder with --img_dir"
            )
    twice, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: {twice} has {count} rows; make them one")
    return paths


def split(positives: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose which images to hold out, so that each class keeps its share; returns bool (N,).

    positives: (N, C) bool. Iterative stratification, after Sechidis et al. (2011): class by class, the rarest
    of what is left first, as many of its images as its share still lacks. A fraction of an image is held out
    with that probability, and never the only images of a class.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(positives))
    held_out, left = np.zeros(len(positives), bool), np.ones(len(positives), bool)
    while left.any():
        counts = positives[left].sum(axis=0)
        members = np.ones(len(positives), bool)  # at last, the images without a class
        if counts.any():
            members = positives[:, np.where(counts > 0, counts, len(positives) + 1).argmin()]
        candidates = order[(left & members)[order]]
        lacking = max(0, fraction * members.sum() - (held_out & members).sum())
        number_held = int(lacking) + (rng.random() < lacking % 1)
        kept = (members & ~held_out & ~left).any()
        held_out[candidates[: min(number_held, len(candidates) - (not kept))]] = True
        left &= ~members
    return held_out


if __name__ == "__main__":
    run(main)
