"""Make the label files of MS-COCO.

python utils/prepare_coco.py --data_path Dataset/COCO2014 [--year 2014|2017] [--verify]
"""

import contextlib
import io
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.data.classes import class_names
from utils.data.preparing import Entry, Splits, listed_file, parse_args, verify, write_labels
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_folder
from utils.runtime.script import run_script


def main() -> None:
    parser = Parser(description="Make data/coco/train_coco<year>.json and val_coco<year>.json from MS-COCO.")
    parser.add_argument("--data_path", type=given_path, help="holds images/ [default: Dataset/COCO<year>]")
    parser.add_argument("--year", choices=["2014", "2017"], default="2014", help="release of MS-COCO")
    args = parse_args(parser)
    check_folder(Path("data/coco"), "label files")
    data_path = args.data_path or Path(f"Dataset/COCO{args.year}")
    classes = class_names("coco")
    splits: Splits = {}
    for split in ("train", "val"):
        splits[f"{split}_coco{args.year}.json"] = read_split(data_path, f"{split}{args.year}", classes)
    if args.verify:
        verify(splits, args.max_pixels)
    write_labels(Path("data/coco"), classes, splits)


def read_split(data_path: Path, split: str, classes: list[str]) -> list[Entry]:
    """Return the entries of a split, sorted by image id; images without annotation are left out."""
    path = data_path / "annotations" / f"instances_{split}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: set --data_path to the folder of annotations/ and images/")
    with reporting_errors("prepare_coco needs pycocotools: pip install pycocotools"):
        from pycocotools.coco import COCO
    print(f"loading {path}", flush=True)
    entries: list[Entry] = []
    with reporting_errors(f"{path} is not a COCO annotation file that lists every id it refers to"):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
            coco = COCO(path)
        categories = {number: coco.cats[number]["name"] for number in sorted(coco.cats)}
        names = list(categories.values())
        if names != classes:
            different = sorted(set(names) ^ set(classes), key=str) or ["their order"]
            raise UserError(f"{path}: its categories differ from data/coco/classes.json: {different[0]!r}")
        if len(coco.imgs) < len(coco.dataset["images"]):
            raise UserError(f"{path}: an id appears twice in its images")
        if len(coco.cats) < len(coco.dataset["categories"]):
            raise UserError(f"{path}: an id appears twice in its categories")
        for image_id in tqdm(sorted(coco.imgToAnns), desc=split, unit="img", disable=None):
            image = listed_file(data_path / "images" / split, coco.imgs[image_id]["file_name"], path)
            # Every box counts, also that of a crowd.
            present = {categories[annotation["category_id"]] for annotation in coco.imgToAnns[image_id]}
            entries.append({"target": [int(c in present) for c in classes], "img_path": image.as_posix()})
    if not entries:
        raise UserError(f"{path} annotates no image")
    print(f"{split}: {len(coco.imgs) - len(entries)} images left out because they have no annotation")
    return entries


if __name__ == "__main__":
    run_script(main)
