"""A data set from annotations of a user's own in COCO's format."""

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from utils.command_line.classes_of import add_classes_of, read_classes_of
from utils.data.bad_images import without_bad
from utils.data.classes import KnownClasses, check_looks, check_names
from utils.data.coco_annotations import (
    Categories,
    load_annotations,
    read_categories,
    read_entries,
    reporting_bad_annotations,
)
from utils.data.label_entries import Pictures
from utils.data.listed_files import check_no_overlap
from utils.data.new_data_set import (
    SPLITS,
    add_overwrite,
    check_overwrite,
    check_splits,
    new_folder,
    own_image,
    write_data_set,
)
from utils.runtime.arguments import given_path
from utils.runtime.errors import UserError
from utils.runtime.paths import FileKey


class Annotations(NamedTuple):
    """A file of annotations as pycocotools reads it, its categories, and the folder of its images."""

    path: Path
    coco: Any
    categories: Categories
    img_dir: Path


def add_own_annotations(group: argparse._ArgumentGroup) -> None:
    """Add the options of `prepare_own`."""
    group.add_argument("--dataset", metavar="NAME", help="name of a new data set, which the others are for")
    for split, use in zip(SPLITS, ("train on", "choose the best epoch on", "test on")):
        split_help = f"annotations of the images to {use}"
        group.add_argument(f"--{split}", type=given_path, metavar="FILE.json", help=split_help)
    img_help = "folder of the images, or one for each of the files in this order [default: the annotations']"
    group.add_argument("--img_dir", type=given_path, nargs="+", metavar="FOLDER", help=img_help)
    add_classes_of(group)
    add_overwrite(group)


def prepare_own(args: Namespace) -> None:
    """Make data/NAME/ from a file of annotations for each split; args: of `add_own_annotations`."""
    check_can_be_used(args)
    folder = new_folder(args.dataset)
    check_overwrite(folder, args.overwrite)
    known = read_classes_of(args.classes_of)
    files = load_files(args)
    check_same_categories(list(files.values()))
    classes = choose_classes(next(iter(files.values())), known)
    pictures: dict[str, Pictures] = {f"{split}.json": {} for split in SPLITS}
    for split, file in files.items():
        pictures[f"{split}.json"] = read_pictures(file, classes)
    check_no_overlap(pictures)
    splits = {name: list(entries.values()) for name, entries in pictures.items()}
    good = check_splits(without_bad(splits, args), "--skip_bad", may_lack_training=known is not None)
    write_data_set(folder, classes, good)


def check_can_be_used(args: Namespace) -> None:
    """Raise UserError if nothing could use the data set: no test images, or neither training nor a model."""
    if args.test is None or (args.train is None and args.classes_of is None):
        way_out = "or --test and --classes_of if you only want to evaluate a trained model"
        raise UserError(f"--dataset {args.dataset} needs --train and --test, {way_out}")


def load_files(args: Namespace) -> dict[str, Annotations]:
    """Return the annotations of each split that the options name, in the order of SPLITS."""
    given = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    folders = image_folders(args.img_dir, given)
    files = {}
    for split, path in given.items():
        with reporting_bad_annotations(path):
            coco = load_annotations(path)
            files[split] = Annotations(path, coco, read_categories(coco), folders[split])
    return files


def image_folders(img_dirs: list[Path] | None, given: dict[str, Path]) -> dict[str, Path]:
    """Return the folder of each split's images; UserError if there are neither one folder nor one for each.

    img_dirs: the folders, None for those of the annotations. given: the files of annotations.
    """
    if img_dirs is None:
        return {split: path.parent for split, path in given.items()}
    if len(img_dirs) == 1:
        return dict.fromkeys(given, img_dirs[0])
    if len(img_dirs) != len(given):
        names = ", ".join(f"--{split}" for split in given)
        raise UserError(f"--img_dir has {len(img_dirs)} folders: name one, or one for each of {names}")
    return dict(zip(given, img_dirs))


def check_same_categories(files: list[Annotations]) -> None:
    """Raise UserError if the categories of two files differ; it names the first difference."""
    first = files[0]
    for other in files[1:]:
        check_kinds_of_ids(first, other)
        for number in sorted(first.categories.keys() | other.categories.keys()):
            names = [
                repr(file.categories[number]) if number in file.categories else "missing"
                for file in (first, other)
            ]
            if names[0] != names[1]:
                differ = f"category {number} is {names[0]} in {first.path} and {names[1]} in {other.path}"
                raise UserError(f"{differ}: the files of a data set need the same categories")


def check_kinds_of_ids(first: Annotations, other: Annotations) -> None:
    """Raise UserError if the ids of the categories are numbers in one file and texts in the other one."""
    kinds = {isinstance(number, str) for number in (*first.categories, *other.categories)}
    if len(kinds) > 1:
        has_texts = any(isinstance(number, str) for number in first.categories)
        texts, numbers = (first.path, other.path) if has_texts else (other.path, first.path)
        differ = f"the ids of the categories are texts in {texts} and numbers in {numbers}"
        raise UserError(f"{differ}: write them as numbers in both files")


def choose_classes(file: Annotations, known: KnownClasses | None) -> list[str]:
    """Return the known classes, or for None the categories in the order of their ids.

    Raises UserError unless the categories can be class names, and are all known.
    """
    names = check_names(list(file.categories.values()), file.path)
    check_looks(names, file.path)
    if known is None:
        return names
    allowed = set(known.names)
    for name in names:
        if name not in allowed:
            raise known.unknown(name, str(file.path))
    return known.names


def read_pictures(file: Annotations, classes: list[str]) -> Pictures:
    """Return the entries of a file, sorted by image id; images without annotation stay."""

    def find_image(file_name: str) -> tuple[Path, FileKey]:
        return own_image(file.img_dir, file_name, str(file.path))

    with reporting_bad_annotations(file.path):
        image_ids = file.coco.imgs.keys()
        for image_id in file.coco.imgToAnns.keys() - image_ids:
            raise KeyError(image_id)
        entries = read_entries(file.coco, image_ids, classes, find_image, file.path.stem)
    if not file.coco.imgToAnns:
        raise UserError(f"{file.path} annotates no image")
    num_empty = len(image_ids) - len(file.coco.imgToAnns)
    if num_empty:
        print(f"{file.path}: {num_empty} images without annotation, which are negative for every class")
    return entries
