"""Make the label files of Open Images from the labels that people have verified.

python utils/prepare_openimages.py [--data_path Dataset/OpenImages] [--boxable] [--classes FILE] [--verify]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.bad_images import parse_args, without_bad
from utils.data.label_entries import ListedEntries
from utils.data.label_rows import (
    NOT_CHOSEN,
    deduplicate_in_place,
    labels_with_positive,
    replace_labels_in_place,
    unpack,
)
from utils.data.labels import Paths
from utils.data.new_data_set import check_overwrite, write_data_set
from utils.data.open_images import (
    Codes,
    class_titles,
    find_table,
    images_in,
    read_display_names,
    read_label_names,
    read_verified,
)
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError
from utils.runtime.output_checks import check_folder
from utils.runtime.script import run_script

FOLDER = Path("data/openimages")
LABEL_FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
IMAGE_LABELS = "annotations-human-imagelabels"
WAY_OUT = "set --data_path to the folder of annotations/, train/, validation/ and test/"


class VerifiedSplit(NamedTuple):
    """The images of a split that are there.

    folder: of the images. table: the CSV file. image_ids (N,): bytes, sorted.
    is_listed (N,) bool: whether the table has a row on an image.
    packed (R,) int64: the rows of the table, see label_rows.pack, sorted; their labels are codes.
    """

    folder: Path
    table: Path
    image_ids: np.ndarray
    is_listed: np.ndarray
    packed: np.ndarray


def main() -> None:
    args = parse_args(make_parser())
    check_folder(FOLDER, "label files")
    check_overwrite(FOLDER, overwrite=True)
    annotations = args.data_path / "annotations"
    if not annotations.is_dir():
        raise UserError(f"{annotations} is missing: {WAY_OUT}")
    given_names = read_label_names(args.classes) if args.classes else None
    descriptions = find_descriptions(annotations, args.boxable)
    tables = {split: find_labels(args.data_path, split, args.boxable) for split in LABEL_FILES}
    display_names = read_display_names(descriptions)

    images = {split: find_images(args.data_path / split) for split in LABEL_FILES}

    codes = Codes()
    splits = {}
    for name, table in tables.items():
        if table is not None:
            splits[name] = read_verified_images(args.data_path / name, images[name], table, codes)
    check_ids_differ(splits)
    label_names = given_names or names_with_positive(splits["train"], codes)
    check_known(label_names, display_names, codes, args.classes)
    titles = class_titles(label_names, display_names, descriptions)

    entries = {}
    for name, split in splits.items():
        entries[LABEL_FILES[name]] = make_entries(split, label_names, codes)
    if not entries.get("val.json"):
        entries.pop("val.json", None)
        print("no images for val.json: main.py will choose the best epoch on the test images")
    write_data_set(FOLDER, titles, without_bad(entries, args))


def make_parser() -> Parser:
    parser = Parser(description="Make the label files and the list of classes of Open Images.")
    path_help = "holds annotations/, train/, validation/ and test/"
    parser.add_argument("--data_path", type=given_path, default="Dataset/OpenImages", help=path_help)
    boxable_help = "read the -boxable files instead: 601 classes, on fewer images"
    parser.add_argument("--boxable", action="store_true", help=boxable_help)
    classes_help = "a LabelName a line, in target order [default: those with a positive in train, sorted]"
    parser.add_argument("--classes", type=given_path, metavar="FILE", help=classes_help)
    return parser


def find_descriptions(annotations: Path, boxable: bool) -> Path:
    """Return the file of class descriptions; the one of all classes also serves --boxable."""
    name = "class-descriptions"
    path = find_table(annotations, name, boxable) or find_table(annotations, name, boxable=False)
    if path is None:
        raise UserError(
            f"{annotations / name}.csv is missing, also with oidv6- or oidv7- in front: {WAY_OUT}"
        )
    return path


def find_labels(data_path: Path, split: str, boxable: bool) -> Path | None:
    """Return the CSV file of a split.

    If there is none, return None for validation without images; otherwise raise UserError.
    """
    annotations = data_path / "annotations"
    start = "(validation|val)" if split == "validation" else split
    path = find_table(annotations, f"{start}-{IMAGE_LABELS}", boxable)
    if path is not None:
        return path
    if split == "validation" and not len(images_in(data_path / split)):
        return None
    way_out = WAY_OUT
    other = find_table(annotations, f"{start}-{IMAGE_LABELS}", not boxable)
    if other is not None:
        way_out = f"to read {other.name}, {'leave --boxable out' if boxable else 'add --boxable'}"
    missing = annotations / f"{split}-{IMAGE_LABELS}{'-boxable' if boxable else ''}.csv"
    raise UserError(f"{missing} is missing, also with oidv6- or oidv7- in front: {way_out}")


def find_images(folder: Path) -> np.ndarray:
    """Return the ids of the images of a split, see images_in; UserError if train or test has none."""
    image_ids = images_in(folder)
    if not len(image_ids) and folder.name != "validation":
        raise UserError(f"there are no images <ImageID>.jpg in {folder}: {WAY_OUT}")
    return image_ids


def read_verified_images(folder: Path, image_ids: np.ndarray, table: Path, codes: Codes) -> VerifiedSplit:
    """Read the labels of the images in a folder, and say how many images are missing.

    image_ids (N,): see images_in. codes: see read_verified.
    """
    print(f"reading {table}", flush=True)
    verified = read_verified(table, image_ids, codes)
    print(f"{folder.name}: {verified.num_missing} images left out because they are not in {folder}")
    packed, num_contradicted = deduplicate_in_place(verified.packed)
    if num_contradicted:
        print(f"{folder.name}: {num_contradicted} labels are 1 in one row and 0 in another, so unknown")
    return VerifiedSplit(folder, table, image_ids, verified.is_listed, packed)


def check_ids_differ(splits: dict[str, VerifiedSplit]) -> None:
    """Raise UserError if an image is in two splits."""
    listed = {name: split.image_ids[split.is_listed] for name, split in splits.items()}
    for first, second in itertools.combinations(splits, 2):
        both = np.intersect1d(listed[first], listed[second])
        if len(both):
            files = f"{splits[first].table} and in {splits[second].table}"
            image_id = os.fsdecode(both[0])
            raise UserError(f"the image {image_id} is in {files}: download the one that is wrong again")


def names_with_positive(train: VerifiedSplit, codes: Codes) -> list[str]:
    """Return the LabelNames that an image of train has, sorted; UserError if there are none."""
    has_positive = labels_with_positive(train.packed)
    names = sorted(name for name, code in codes.items() if code in has_positive)
    if not names:
        raise UserError(f"{train.folder} has no image with a positive label in {train.table}: {WAY_OUT}")
    return names


def check_known(
    label_names: list[str], display_names: dict[str, str], codes: Codes, source: Path | None
) -> None:
    """Raise UserError if a LabelName is in none of the CSV files; say how many have no display name.

    source: the file with the LabelNames.
    """
    nameless = [name for name in label_names if name not in display_names]
    for name in nameless:
        if name not in codes:
            raise UserError(
                f"--classes {source}: no class has the LabelName {name!r:.99}: correct or remove it"
            )
    if nameless:
        print(f"{len(nameless)} classes have no display name, first {nameless[0]}: it is their LabelName")


def make_entries(split: VerifiedSplit, label_names: list[str], codes: Codes) -> ListedEntries:
    """Return the entries of the images that have a label of the classes; say how many have none.

    It uses the memory of split.packed, whose rows are then others.
    Raises UserError if no image of train or test has one.
    """
    class_of = np.full(len(codes), NOT_CHOSEN)
    for c, name in enumerate(label_names):
        if name in codes:
            class_of[codes[name]] = c
    packed = replace_labels_in_place(split.packed, class_of)
    images, targets = unpack(packed, len(split.image_ids), len(label_names))
    name = split.folder.name
    num_without = int(split.is_listed.sum()) - len(images)
    print(f"{name}: {num_without} images left out because no label of the classes is known")
    if not len(images) and name != "validation":
        raise UserError(
            f"{split.folder} has no image with a label of the classes in {split.table}: {WAY_OUT}"
        )
    folder = os.fsencode(split.folder.as_posix())
    paths = Paths.of(b"%s/%s.jpg" % (folder, image_id) for image_id in split.image_ids[images])
    return ListedEntries(paths, targets)


if __name__ == "__main__":
    run_script(main)
