"""Make the label files of WIDER Attribute: an entry for each person, with the box to cut out.

python utils/prepare_wider.py --data_path Dataset/WIDER [--verify]
"""

import os
import sys
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.label_files import class_names, write_labels
from utils.runtime.cli import Parser, UserError, given_path, run
from utils.runtime.files import check_folder, read_json
from utils.verify import add_verify_arguments, verify

PRESENT, ABSENT, UNSPECIFIED = 1, -1, 0  # as the annotations write an attribute
IGNORED = 99  # as our label files write what counts in no metric


def main() -> None:
    parser = Parser(
        description="Make data/wider/trainval_wider.json and test_wider.json from WIDER Attribute."
    )
    parser.add_argument(
        "--data_path",
        type=given_path,
        default=Path("Dataset/WIDER"),
        help="the folder that holds Annotations/ and Image/ [default: %(default)s]",
    )
    add_verify_arguments(parser)
    args = parser.parse_args()
    check_folder(Path("data/wider"), "label files")
    classes = class_names("wider")
    splits, empty = {}, 0
    for split, unspecified in (("trainval", 0), ("test", IGNORED)):
        values = {PRESENT: 1, ABSENT: 0, UNSPECIFIED: unspecified}
        entries, left_out = read_split(args.data_path, split, values, len(classes))
        splits[f"{split}_wider.json"] = entries
        empty += left_out
    verify(sum(splits.values(), []), args)
    write_labels(Path("data/wider"), classes, splits)
    print(f"people left out, as their boxes hold nothing of the image: {empty}")


def read_split(
    data_path: Path, split: str, values: dict[int, int], num_classes: int
) -> tuple[list[dict], int]:
    """Return the label file entries of a split, a person each, and how many people have an empty box.

    values: what an attribute's number becomes. Raises UserError where the annotations are malformed or an
    image is missing.
    """
    path = data_path / "Annotations" / f"wider_attribute_{split}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: --data_path names the folder that holds Annotations/ and Image/")
    content = read_json(path)
    entries, left_out = [], 0
    try:
        for image in tqdm(content["images"], desc=split, unit="img", disable=None):
            name = image["file_name"]
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise UserError(f"{path}: the file name {name!r} leads out of Image/: it is not WIDER's")
            img_path = data_path / "Image" / name
            width, height = image_size(img_path, path)
            for person in image["targets"]:
                target = [values[value] for value in person["attribute"]]
                if len(target) != num_classes:
                    raise ValueError(f"{len(target)} attributes for {num_classes} classes")
                box = clip(person["bbox"], width, height)
                if box is None:
                    left_out += 1
                else:
                    entries.append({"target": target, "img_path": img_path.as_posix(), "bbox": box})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        fault = f"{type(error).__name__} {error}"
        raise UserError(f"{path} is not an annotation file of WIDER Attribute: {fault}") from None
    if not entries:
        raise UserError(f"{path} annotates nobody")
    return entries, left_out


def image_size(path: Path, annotations: Path) -> tuple[int, int]:
    """Return width and height of an image, by its header."""
    if not path.is_file():
        raise UserError(f"{path} is missing, though {annotations.name} lists it: unpack the data set again")
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): unpack it again") from None


def clip(box: list[float], width: int, height: int) -> list[int] | None:
    """Return the part of a box [x, y, w, h] that lies in the image, in whole pixels; None if nothing does."""
    x, y, w, h = box
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(width, round(x + w)), min(height, round(y + h))
    return [left, top, right - left, bottom - top] if right > left and bottom > top else None


if __name__ == "__main__":
    run(main)
