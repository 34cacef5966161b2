"""Make the label files of MS-COCO.

python utils/prepare_coco.py --data_path Dataset/COCO2014 [--year 2014|2017] [--verify]
"""

import contextlib
import io
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.label_files import class_names, listed_file, write_labels
from utils.runtime.cli import Parser, UserError, given_path, parsing, run_script
from utils.runtime.files import check_folder
from utils.verify import add_verify_arguments, verify


def main() -> None:
    parser = Parser(description="Make data/coco/train_coco<year>.json and val_coco<year>.json from MS-COCO.")
    contents = "folder of annotations/ and images/ [default: Dataset/COCO<year>]"
    parser.add_argument("--data_path", type=given_path, help=contents)
    parser.add_argument("--year", choices=["2014", "2017"], default="2014", help="release of MS-COCO")
    add_verify_arguments(parser)
    args = parser.parse_args()
    check_folder(Path("data/coco"), "label files")
    data_path = args.data_path or Path(f"Dataset/COCO{args.year}")
    classes = class_names("coco")
    splits, left_out = {}, []
    for split in ("train", "val"):
        entries, num_left_out = read_split(data_path, f"{split}{args.year}", classes)
        splits[f"{split}_coco{args.year}.json"] = entries
        left_out.append(f"{num_left_out} of {split}{args.year}")
    verify(splits, args)
    write_labels(Path("data/coco"), classes, splits)
    print(f"images left out because they have no annotation: {', '.join(left_out)}")


def read_split(data_path: Path, split: str, classes: list[str]) -> tuple[list[dict], int]:
    """Return a split's label file entries, sorted by image id, and the number of images without annotation.

    Every box counts, also that of a crowd. Raises UserError if a file is malformed or missing.
    """
    path = data_path / "annotations" / f"instances_{split}.json"
    folder = data_path / "images" / split
    for needed in (path, folder):
        if not needed.exists():
            raise UserError(f"{needed} is missing: set --data_path to the folder of annotations/ and images/")
    with parsing(f"{path} is not a COCO annotation file"):
        coco = load_annotations(path)
        check_annotations(coco, path, classes)
        column = {category: index for index, category in enumerate(sorted(coco.cats))}
        entries = []
        for image_id in tqdm(sorted(coco.imgs), desc=split, unit="img", disable=None):
            if image_id in coco.imgToAnns:
                image = listed_file(folder, coco.imgs[image_id]["file_name"], path)
                present = {column[annotation["category_id"]] for annotation in coco.imgToAnns[image_id]}
                target = [int(c in present) for c in range(len(classes))]
                entries.append({"target": target, "img_path": image.as_posix()})
    if not entries:
        raise UserError(f"{path} annotates no image")
    return entries, len(coco.imgs) - len(entries)


def load_annotations(path: Path):
    """Return pycocotools' COCO object of an annotation file; it raises the errors of pycocotools."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise UserError("prepare_coco needs pycocotools: pip install pycocotools") from None
    print(f"loading {path}", flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        return COCO(path)


def check_annotations(coco, path: Path, classes: list[str]) -> None:
    """Raise UserError if the categories are not `classes`, an id appears twice, or an id is not listed."""
    names = [coco.cats[category]["name"] for category in sorted(coco.cats)]
    if names != classes:
        different = sorted(set(names) ^ set(classes), key=str) or ["their order"]
        raise UserError(f"{path}: its categories differ from data/coco/classes.json: {different[0]!r}")
    for key in ("images", "categories"):
        for number, count in Counter(item["id"] for item in coco.dataset[key]).items():
            if count > 1:
                raise UserError(f"{path}: the id {number} appears twice in its {key}")
    references = (("image_id", coco.imgToAnns, coco.imgs), ("category_id", coco.catToImgs, coco.cats))
    for key, used, known in references:
        for number in used:
            if number not in known:
                raise UserError(f"{path}: an annotation has the {key} {number}, which the file does not list")


if __name__ == "__main__":
    run_script(main)
