"""Make the label files of MS-COCO, or a data set from annotations of your own in COCO's format.

python utils/prepare_coco.py --data_path Dataset/COCO2014 [--year 2014|2017] [--verify]
python utils/prepare_coco.py --dataset mine --train train.json --test test.json [--img_dir photos]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

from argparse import Namespace
from pathlib import Path

from utils.data.bad_images import parse_args, without_bad
from utils.data.classes import class_names
from utils.data.coco_annotations import (
    load_annotations,
    read_categories,
    read_entries,
    reporting_bad_annotations,
)
from utils.data.label_entries import Entry, Pictures
from utils.data.label_writing import write_labels
from utils.data.listed_files import check_no_overlap, listed_file
from utils.data.own_coco import add_own_annotations, prepare_own
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError
from utils.runtime.output_checks import check_folder
from utils.runtime.paths import FileKey
from utils.runtime.script import run_script


def main() -> None:
    args = parse_args(make_parser())
    check_one_job(args)
    if args.dataset is None:
        prepare_official(args)
    else:
        prepare_own(args)


def make_parser() -> Parser:
    description = "Make data/coco/train_coco<year>.json and val_coco<year>.json from MS-COCO, or data/NAME/."
    parser = Parser(description=description)
    group = parser.add_argument_group("MS-COCO")
    path_help = "holds annotations/ and images/ [default: Dataset/COCO<year>]"
    group.add_argument("--data_path", type=given_path, help=path_help)
    group.add_argument("--year", choices=["2014", "2017"], help="release of MS-COCO [default: 2014]")
    add_own_annotations(parser.add_argument_group("annotations of your own"))
    return parser


def check_one_job(args: Namespace) -> None:
    """Raise UserError for options of MS-COCO together with those for annotations of one's own."""
    if args.dataset is None:
        for name in ("train", "val", "test", "img_dir", "classes_of", "overwrite"):
            if getattr(args, name):
                raise UserError(f"--{name} is for annotations of your own: add --dataset NAME")
    else:
        for name in ("data_path", "year"):
            if getattr(args, name):
                raise UserError(f"--{name} is for MS-COCO, --dataset for your own: leave one of them out")


def prepare_official(args: Namespace) -> None:
    """Make the label files of MS-COCO."""
    year = args.year or "2014"
    check_folder(Path("data/coco"), "label files")
    data_path = args.data_path or Path(f"Dataset/COCO{year}")
    classes = class_names("coco")
    pictures = {}
    for split in ("train", "val"):
        pictures[f"{split}_coco{year}.json"] = read_split(data_path, f"{split}{year}", classes)
    check_no_overlap(pictures)
    splits = {}
    for name, entries in pictures.items():
        splits[name] = [dense_entry(entry, len(classes)) for entry in entries.values()]
    write_labels(Path("data/coco"), classes, without_bad(splits, args))


def read_split(data_path: Path, split: str, classes: list[str]) -> Pictures:
    """Return the entries of a split, sorted by image id; images without annotation are left out."""
    path = data_path / "annotations" / f"instances_{split}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: set --data_path to the folder of annotations/ and images/")

    def find_image(file_name: str) -> tuple[Path, FileKey]:
        return listed_file(data_path / "images" / split, file_name, path)

    with reporting_bad_annotations(path):
        coco = load_annotations(path)
        names = list(read_categories(coco).values())
        if names != classes:
            different = sorted(set(names) ^ set(classes), key=str) or ["their order"]
            raise UserError(f"{path}: its categories differ from data/coco/classes.json: {different[0]!a}")
        entries = read_entries(coco, coco.imgToAnns, classes, find_image, split)
    if not entries:
        raise UserError(f"{path} annotates no image")
    print(f"{split}: {len(coco.imgs) - len(coco.imgToAnns)} images left out because they have no annotation")
    return entries


def dense_entry(entry: Entry, num_classes: int) -> Entry:
    """Return an entry with a number for each class, as in the authors' label files."""
    target = [0] * num_classes
    for c in entry["positives"]:
        target[c] = 1
    return {"target": target, "img_path": entry["img_path"]}


if __name__ == "__main__":
    run_script(main)
