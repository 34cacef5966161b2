"""Make the label files of MS-COCO, or a data set from annotations of your own in COCO's format.

python utils/prepare_coco.py --data_path Dataset/COCO2014 [--year 2014|2017] [--verify]
python utils/prepare_coco.py --dataset mine --train train.json --test test.json [--img_dir photos]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import contextlib
import io
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.commands.classes_of import add_classes_of, read_classes_of
from utils.data.classes import check_looks, check_names, class_names
from utils.data.label_files import UNKNOWN
from utils.data.lookalikes import compose, describe_unknown
from utils.data.new_data_set import (
    SPLITS,
    add_overwrite,
    check_overwrite,
    check_splits,
    new_folder,
    own_image,
    write_data_set,
)
from utils.data.preparing import (
    Entry,
    Pictures,
    check_no_overlap,
    listed_file,
    parse_args,
    without_bad,
    write_labels,
)
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_folder
from utils.runtime.paths import FileKey
from utils.runtime.script import run_script

Categories = dict[int, str]  # {id: name}
FindImage = Callable[[str], tuple[Path, FileKey]]  # from a file_name to the image


def main() -> None:
    args = parse_args(make_parser())
    check_options(args)
    if args.dataset is None:
        prepare_official(args)
    else:
        prepare_own(args)


def make_parser() -> Parser:
    description = "Make data/coco/train_coco<year>.json and val_coco<year>.json from MS-COCO, or data/NAME/."
    parser = Parser(description=description)
    group = parser.add_argument_group("MS-COCO")
    group.add_argument("--data_path", type=given_path, help="holds images/ [default: Dataset/COCO<year>]")
    group.add_argument("--year", choices=["2014", "2017"], help="release of MS-COCO [default: 2014]")
    group = parser.add_argument_group("annotations of your own")
    group.add_argument("--dataset", metavar="NAME", help="name of a new data set, which the others are for")
    for split, use in zip(SPLITS, ("train on", "choose the best epoch on", "test on")):
        split_help = f"annotations of the images to {use}"
        group.add_argument(f"--{split}", type=given_path, metavar="FILE.json", help=split_help)
    img_help = "folder of the images, or one for each of the files in this order [default: the annotations']"
    group.add_argument("--img_dir", type=given_path, nargs="+", metavar="FOLDER", help=img_help)
    add_classes_of(group)
    add_overwrite(group)
    return parser


def check_options(args: Namespace) -> None:
    """Raise UserError for options that conflict."""
    own = ("train", "val", "test", "img_dir", "classes_of", "overwrite")
    official = ("data_path", "year")
    if args.dataset is None:
        for name in own:
            if getattr(args, name):
                raise UserError(f"--{name} is for annotations of your own: add --dataset NAME")
        return
    for name in official:
        if getattr(args, name):
            raise UserError(f"--{name} is for MS-COCO, --dataset for your own: leave one of them out")
    if args.test is None or (args.train is None and args.classes_of is None):
        way_out = "or --test and --classes_of if you only want to evaluate a trained model"
        raise UserError(f"--dataset {args.dataset} needs --train and --test, {way_out}")


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
    splits = {name: list(entries.values()) for name, entries in pictures.items()}
    write_labels(Path("data/coco"), classes, without_bad(splits, args))


def read_split(data_path: Path, split: str, classes: list[str]) -> Pictures:
    """Return the entries of a split, sorted by image id; images without annotation are left out."""
    path = data_path / "annotations" / f"instances_{split}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: set --data_path to the folder of annotations/ and images/")

    def find_image(file_name: str) -> tuple[Path, FileKey]:
        return listed_file(data_path / "images" / split, file_name, path)

    with reading(path):
        coco = load(path)
        names = list(read_categories(coco).values())
        if names != classes:
            different = sorted(set(names) ^ set(classes), key=str) or ["their order"]
            raise UserError(f"{path}: its categories differ from data/coco/classes.json: {different[0]!a}")
        entries = read_entries(coco, coco.imgToAnns, classes, find_image, split)
    if not entries:
        raise UserError(f"{path} annotates no image")
    print(f"{split}: {len(coco.imgs) - len(coco.imgToAnns)} images left out because they have no annotation")
    return entries


def prepare_own(args: Namespace) -> None:
    """Make a data set from a file of annotations for each split."""
    folder = new_folder(args.dataset)
    check_overwrite(folder, args.overwrite)
    given = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    files: dict[str, Any] = {}
    categories: dict[str, Categories] = {}
    for split, path in given.items():
        with reading(path):
            files[split] = load(path)
            categories[split] = read_categories(files[split])
    first = next(iter(given))
    for split in given:
        check_agreement(categories[first], categories[split], given[first], given[split])
    folders = image_folders(args.img_dir, given)
    classes = read_classes_of(args.classes_of)
    own_classes = check_own_classes(categories[first], classes, given[first])
    pictures: dict[str, Pictures] = {f"{split}.json": {} for split in SPLITS}
    for split, path in given.items():
        pictures[f"{split}.json"] = read_own_split(files[split], path, classes or own_classes, folders[split])
    check_no_overlap(pictures)
    splits = {name: list(entries.values()) for name, entries in pictures.items()}
    splits = check_splits(without_bad(splits, args), "--skip_bad", may_lack_training=classes is not None)
    write_data_set(folder, classes or own_classes, splits)


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


def check_own_classes(categories: Categories, known: list[str] | None, path: Path) -> list[str]:
    """Return the names of the categories; UserError unless they can be class names, and are all known."""
    names = check_names(list(categories.values()), path)
    check_looks(names, path)
    for name in names:
        if known is not None and name not in known:
            raise UserError(f"{path}: --classes_of has no class {describe_unknown(name, known)}")
    return names


def check_agreement(first: Categories, second: Categories, first_path: Path, second_path: Path) -> None:
    """Raise UserError if the categories of two files differ; it names the first difference."""
    for number in sorted(first.keys() | second.keys()):
        if first.get(number) != second.get(number):
            names = [repr(one[number]) if number in one else "missing" for one in (first, second)]
            differ = f"category {number} is {names[0]} in {first_path} and {names[1]} in {second_path}"
            raise UserError(f"{differ}: the files of a data set need the same categories")


def read_own_split(coco: Any, path: Path, classes: list[str], img_dir: Path) -> Pictures:
    """Return the entries of a file of annotations, sorted by image id; images without annotation stay."""

    def find_image(file_name: str) -> tuple[Path, FileKey]:
        return own_image(img_dir, file_name, str(path))

    with reading(path):
        image_ids = coco.imgs.keys()
        for image_id in coco.imgToAnns.keys() - image_ids:
            raise KeyError(image_id)
        entries = read_entries(coco, image_ids, classes, find_image, path.stem)
    if not coco.imgToAnns:
        raise UserError(f"{path} annotates no image")
    num_empty = len(image_ids) - len(coco.imgToAnns)
    if num_empty:
        print(f"{path}: {num_empty} images without annotation, which are negative for every class")
    return entries


def reading(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turn an exception inside the block into a UserError that says that a file is not as COCO's are."""
    return reporting_errors(f"{path} is not a COCO annotation file that lists every id it refers to")


def load(path: Path) -> Any:
    """Read a file of annotations with pycocotools; UserError if an id appears twice."""
    with reporting_errors("prepare_coco needs pycocotools: pip install pycocotools"):
        from pycocotools.coco import COCO
    print(f"loading {path}", flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        coco = COCO(path)
    if len(coco.imgs) < len(coco.dataset["images"]):
        raise UserError(f"{path}: an id appears twice in its images")
    if len(coco.cats) < len(coco.dataset["categories"]):
        raise UserError(f"{path}: an id appears twice in its categories")
    return coco


def read_categories(coco: Any) -> Categories:
    """Return the categories of a file of annotations, in the order of their ids."""
    return {number: compose(coco.cats[number]["name"].strip()) for number in sorted(coco.cats)}


def read_entries(
    coco: Any, image_ids: Iterable[int], classes: list[str], find_image: FindImage, title: str
) -> Pictures:
    """Return an entry for each image file, sorted by image id; several ids of one file are joined.

    A class that is no category of the file is unknown. title: of the progress bar.
    """
    categories = read_categories(coco)
    absent = [0 if name in categories.values() else UNKNOWN for name in classes]
    row = {name: c for c, name in enumerate(classes)}
    pictures: Pictures = {}
    for image_id in tqdm(sorted(image_ids), desc=title, unit="img", disable=None):
        image, key = find_image(coco.imgs[image_id]["file_name"])
        new: Entry = {"target": list(absent), "img_path": image.as_posix()}
        target = pictures.setdefault(key, new)["target"]
        # Every box counts, also that of a crowd.
        for annotation in coco.imgToAnns.get(image_id, []):
            target[row[categories[annotation["category_id"]]]] = 1
    return pictures


if __name__ == "__main__":
    run_script(main)
