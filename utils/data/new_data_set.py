"""What the preparers of a user's own data set share: its folder, its images and its label files."""

import argparse
import os
from pathlib import Path

from utils.data.classes import is_class_list
from utils.data.datasets import DATASETS, is_folder_name
from utils.data.label_entries import Splits
from utils.data.label_writing import check_label_file, write_labels
from utils.runtime.errors import UserError
from utils.runtime.files import write_json_list
from utils.runtime.output_checks import check_folder, check_replaceable
from utils.runtime.paths import FileKey, existing_spelling, find_file

SPLITS = ("train", "val", "test")


def add_overwrite(group: argparse._ActionsContainer) -> None:
    """Add the option that lets a preparer replace a data set."""
    group.add_argument("--overwrite", action="store_true", help="replace an existing data set")


def new_folder(name: str) -> Path:
    """Return data/NAME; UserError if it is the name of a built-in data set, or not a folder name."""
    if name in DATASETS or not is_folder_name(name):
        raise UserError(f"--dataset {name}: choose a folder name without /, other than {', '.join(DATASETS)}")
    folder = Path("data", name)
    check_folder(folder, "--dataset")
    return folder


def check_overwrite(folder: Path, overwrite: bool) -> None:
    """Raise UserError if the folder holds a data set, unless it may be replaced, or other files."""
    classes = folder / "classes.json"
    label_files = [folder / f"{split}.json" for split in SPLITS]
    if not overwrite and any(path.exists() for path in (classes, *label_files)):
        raise UserError(f"{folder} already holds a data set: choose another name or add --overwrite")
    check_replaceable(classes, "list of classes", is_class_list, "a script that makes label files")
    for path in label_files:
        check_label_file(path)


def own_image(folder: Path, name: str, source: str) -> tuple[Path, FileKey]:
    """Return an image that `source` lists; UserError if it is missing.

    name: relative to the folder, and then UserError if it leads above it; or absolute, and then anywhere.
    """
    if os.path.normpath(name).split(os.sep)[0] == "..":
        raise UserError(
            f"{source}: {name!r:.200} is not below {folder}: set --img_dir to a folder above all images"
        )
    path = Path(existing_spelling(str(folder / name)))
    key = find_file(path)
    if key is None:
        raise UserError(f"{source}: no image {path.as_posix()} in {folder}: correct it, or --img_dir")
    return path, key


def check_splits(splits: Splits, cause: str, may_lack_training: bool) -> Splits:
    """Return the splits that have images; UserError, naming the cause, if a needed one has none.

    may_lack_training: whether a data set may be for val.py alone.
    """
    if not splits["test.json"]:
        raise UserError(f"{cause} leaves no images to test on: add images")
    if not splits["train.json"] and not may_lack_training:
        way_out = "add images, or --classes_of if you only want to evaluate a trained model"
        raise UserError(f"{cause} leaves no images to train on: {way_out}")
    if not splits["train.json"]:
        print("no images for train.json: this data set is for val.py alone")
    elif not splits["val.json"]:
        print("no images for val.json: main.py will choose the best epoch on the test images")
    return {name: entries for name, entries in splits.items() if entries}


def write_data_set(folder: Path, classes: list[str], splits: Splits) -> None:
    """Write classes.json and the label files, in place of those of an earlier data set."""
    # After an interruption test.json is missing, so nothing starts, and no labels are for other classes.
    for split in SPLITS:
        (folder / f"{split}.json").unlink(missing_ok=True)
    write_json_list(folder / "classes.json", classes)
    counts = write_labels(folder, classes, splits).values()
    num_labels = len(classes) * sum(of_one_file.num_images for of_one_file in counts)
    num_unknown = sum(of_one_file.num_unknown for of_one_file in counts)
    if num_unknown:
        print(f"{num_unknown} of {num_labels} labels are unknown: they count in no loss and no metric")
