"""Make the label files of MS-COCO.

python utils/prepare_coco.py --data_path Dataset/COCO2014 [--year 2014|2017] [--verify]
"""

import contextlib
import io
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.label_files import class_names, write_labels
from utils.runtime.cli import Parser, UserError, given_path, run
from utils.runtime.files import check_folder
from utils.verify import add_verify_arguments, verify


def main() -> None:
    parser = Parser(description="Make data/coco/train_coco<year>.json and val_coco<year>.json from MS-COCO.")
    parser.add_argument(
        "--data_path",
        type=given_path,
        help="the folder that holds annotations/ and images/ [default: Dataset/COCO<year>]",
    )
    parser.add_argument("--year", choices=["2014", "2017"], default="2014", help="[default: %(default)s]")
    add_verify_arguments(parser)
    args = parser.parse_args()
    check_folder(Path("data/coco"), "label files")

    data_path = args.data_path or Path(f"Dataset/COCO{args.year}")
    classes = class_names("coco")
    splits, left_out = {}, []
    for split in ("train", "val"):
        entries, unlabelled = read_split(data_path, f"{split}{args.year}", classes)
        splits[f"{split}_coco{args.year}.json"] = entries
        left_out.append(f"{unlabelled} of {split}{args.year}")
    verify(sum(splits.values(), []), args)
    write_labels(Path("data/coco"), classes, splits)
    print(f"left out, having no annotation: {', '.join(left_out)}")


def read_split(data_path: Path, split: str, classes: list[str]) -> tuple[list[dict], int]:
    """Return a split's label file entries, sorted by image id, and the number of images without annotation.

    Any box counts, a crowd's too. Raises UserError where the annotations are malformed or an image is
    missing.
    """
    path = data_path / "annotations" / f"instances_{split}.json"
    folder = data_path / "images" / split
    for needed in (path, folder):
        if not needed.exists():
            raise UserError(
                f"{needed} is missing: --data_path names the folder that holds annotations/ and images/"
            )
    coco = load_annotations(path)
    present = set(os.listdir(folder))
    try:
        categories = sorted(coco.cats)
        names = [coco.cats[category]["name"] for category in categories]
        if names != classes:
            other = sorted(set(names) ^ set(classes), key=str) or ["their order"]
            raise UserError(
                f"{path}: its categories are not those of data/coco/classes.json: {other[0]!r} differs"
            )
        check_ids(coco, path)
        column = {category: index for index, category in enumerate(categories)}
        entries = []
        for image_id in tqdm(sorted(coco.imgs), desc=split, unit="img", disable=None):
            annotations = coco.imgToAnns.get(image_id)
            if not annotations:
                continue
            name = coco.imgs[image_id]["file_name"]
            if Path(name).name != name:
                raise UserError(f"{path}: the file name {name!r} leads out of {folder}: it is not COCO's")
            if name not in present:
                raise UserError(f"{folder / name} is missing, though {path.name} lists it: unpack it again")
            target = [0] * len(classes)
            for annotation in annotations:
                target[column[annotation["category_id"]]] = 1
            entries.append({"target": target, "img_path": (folder / name).as_posix()})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a COCO annotation file: {type(error).__name__} {error}") from None
    if not entries:
        raise UserError(f"{path} annotates no image")
    return entries, len(coco.imgs) - len(entries)


def check_ids(coco, path: Path) -> None:
    """Raise UserError where an id of pycocotools' index is given twice, or is none of the file's."""
    for key, found in (("images", coco.imgs), ("categories", coco.cats)):
        ids = [item["id"] for item in coco.dataset.get(key, [])]
        if len(ids) != len(found):
            twice = next(number for number, count in Counter(ids).items() if count > 1)
            raise UserError(f"{path}: the id {twice} stands twice in its {key}")
    for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
        for annotation in coco.dataset.get("annotations", []):
            if annotation[key] not in known:
                raise UserError(
                    f"{path}: an annotation has the {key} {annotation[key]}, which the file does not list"
                )


def load_annotations(path: Path):
    """Return pycocotools' index of an annotation file; UserError where it cannot be read."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise UserError("prepare_coco needs pycocotools: pip install pycocotools") from None
    print(f"loading {path}", flush=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except (KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is not a COCO annotation file: {type(error).__name__} {error}") from None


if __name__ == "__main__":
    run(main)
