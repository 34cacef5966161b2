"""Make the label files of WIDER Attribute: an entry per person, with the box to cut out.

python utils/prepare_wider.py --data_path Dataset/WIDER [--verify]
"""

import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.label_files import UNKNOWN, class_names, listed_file, parse_args, write_labels
from utils.runtime.cli import Parser, UserError, given_path, reporting_errors, run_script
from utils.runtime.files import check_folder, read_json


def main() -> None:
    parser = Parser(description="Make data/wider/trainval_wider.json and test_wider.json.")
    parser.add_argument("--data_path", type=given_path, default="Dataset/WIDER", help="holds Annotations/")
    args = parse_args(parser)
    check_folder(Path("data/wider"), "label files")
    classes = class_names("wider")
    splits, num_left_out = {}, {}
    for split, unspecified in (("trainval", 0), ("test", UNKNOWN)):
        values = {1: 1, -1: 0, 0: unspecified}  # an attribute is present, absent or unspecified
        name = f"{split}_wider.json"
        splits[name], num_left_out[name] = read_split(args.data_path, split, values, len(classes))
    write_labels(Path("data/wider"), classes, splits, args)
    print(f"people left out because their box lies outside the image: {sum(num_left_out.values())}")


def read_split(root: Path, split: str, values: dict[int, int], num_classes: int) -> tuple[list[dict], int]:
    """Return an entry per person, with attributes mapped by `values`, and the number of people left out."""
    path = root / "Annotations" / f"wider_attribute_{split}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: set --data_path to the folder of Annotations/ and Image/")
    entries, num_left_out = [], 0
    with reporting_errors(f"{path} is not an annotation file of WIDER Attribute"):
        for item in tqdm(read_json(path)["images"], desc=split, unit="img", disable=None):
            img_path = listed_file(root / "Image", item["file_name"], path)
            with reporting_errors(f"{img_path} is damaged: unpack it again"), Image.open(img_path) as image:
                width, height = image.size
            for person in item["targets"]:
                target = [values[code] for code in person["attribute"]]
                if len(target) != num_classes:
                    raise ValueError(f"{len(target)} attributes for {num_classes} classes")
                box = clip(person["bbox"], width, height)
                if box:
                    entries.append({"target": target, "img_path": img_path.as_posix(), "bbox": box})
                num_left_out += box is None
    if not entries:
        raise UserError(f"{path} annotates no people")
    return entries, num_left_out


def clip(box: list[float], width: int, height: int) -> list[int] | None:
    """Return the part of a box x, y, w, h that lies in the image, in whole pixels; None if no part does."""
    x, y, w, h = box
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(width, round(x + w)), min(height, round(y + h))
    return [left, top, right - left, bottom - top] if right > left and bottom > top else None


if __name__ == "__main__":
    run_script(main)
