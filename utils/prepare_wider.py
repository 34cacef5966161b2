"""Make the label files of WIDER Attribute: an entry per person, with the box to cut out.

python utils/prepare_wider.py [--data_path Dataset/WIDER_ATTRIBUTE] [--verify]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

from pathlib import Path

from tqdm import tqdm

from utils.data.bad_images import parse_args, without_bad
from utils.data.classes import class_names
from utils.data.label_entries import Entry
from utils.data.label_files import UNKNOWN, box_edges
from utils.data.label_writing import write_labels
from utils.data.listed_files import check_files_differ, listed_file
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import read_json
from utils.runtime.output_checks import check_folder
from utils.runtime.paths import FileKey
from utils.runtime.script import run_script

FOLDERS = ("Dataset/WIDER_ATTRIBUTE", "Dataset/WIDER")


def main() -> None:
    parser = Parser(description="Make data/wider/trainval_wider.json and test_wider.json.")
    found = [folder for folder in FOLDERS if os.path.isdir(folder)]
    default = found[0] if found else " or ".join(FOLDERS)  # no folder: the error then names both
    parser.add_argument("--data_path", type=given_path, default=default, help="holds Annotations/ and Image/")
    args = parse_args(parser)
    check_folder(Path("data/wider"), "label files")
    classes = class_names("wider")
    splits: dict[str, list[Entry]] = {}
    files: dict[str, dict[FileKey, str]] = {}
    for split in ("trainval", "test"):
        name = f"{split}_wider.json"
        splits[name], files[name] = read_people(args.data_path, split, len(classes), args.max_pixels)
    check_files_differ(files)
    write_labels(Path("data/wider"), classes, without_bad(splits, args))


def read_people(
    root: Path, split: str, num_classes: int, max_pixels: float
) -> tuple[list[Entry], dict[FileKey, str]]:
    """Return an entry per person, with the annotated box, and the name of each image file."""
    path = root / "Annotations" / f"wider_attribute_{split}.json"
    if not path.exists():
        raise UserError(f"{path} is missing: set --data_path to the folder of Annotations/ and Image/")
    values = {1: 1, -1: 0, 0: UNKNOWN if split == "test" else 0}  # 0: the attribute is unspecified
    entries: list[Entry] = []
    names: dict[FileKey, str] = {}
    with reporting_errors(f"{path} is not an annotation file of WIDER Attribute"):
        for item in tqdm(read_json(path)["images"], desc=split, unit="img", disable=None):
            image, key = listed_file(root / "Image", item["file_name"], path)
            first_name = names.setdefault(key, item["file_name"])
            if first_name != item["file_name"]:
                both = f"{first_name} and {item['file_name']}"
                raise UserError(f"{path}: {both} are one image: remove one of them")
            for number, person in enumerate(item["targets"], start=1):
                name = f"person {number} of {item['file_name']}"
                with reporting_errors(f"{path}: correct or remove {name}"):
                    target = [values[code] for code in person["attribute"]]
                    if len(target) != num_classes:
                        raise ValueError(f"{len(target)} attributes for {num_classes} classes")
                    box_edges(person["bbox"], max_pixels)  # raises ValueError if it is malformed
                    entries.append({"target": target, "img_path": image.as_posix(), "bbox": person["bbox"]})
    if not entries:
        raise UserError(f"{path} annotates no people")
    return entries, names


if __name__ == "__main__":
    run_script(main)
