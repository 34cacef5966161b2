"""Make the label files of Pascal VOC 2007 or 2012.

python utils/prepare_voc.py --data_path Dataset/VOCdevkit [--year 2007|2012] [--download] [--verify]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.data.bad_images import parse_args, without_bad
from utils.data.classes import class_names
from utils.data.label_entries import Entry, Pictures
from utils.data.label_writing import write_labels
from utils.data.listed_files import check_no_overlap, listed_file
from utils.data.lookalikes import describe_unknown
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.output_checks import check_folder
from utils.runtime.script import run_script

POSITIVE, DIFFICULT, ABSENT = 1, 0, -1  # the targets in the label file for evaluation
# The lists of images to train on, joined by +, and the list to evaluate on. The labels of VOC2012's test set
# are not published.
LISTS = {"2007": ("train+val", "test"), "2012": ("train", "val")}


def main() -> None:
    args = parse_args(make_parser())
    name = f"voc{args.year[2:]}"
    voc = args.data_path / f"VOC{args.year}"
    folder = Path("data", name)
    check_folder(folder, "label files")
    if args.download:
        check_is_incomplete(voc, args.year)
        download_voc(args.data_path, args.year)
    if not voc.is_dir():
        raise UserError(f"{voc} is missing: set --data_path to the folder of {voc.name}/, or use --download")
    classes = class_names(name)
    pictures = {lists.replace("+", ""): read_lists(voc, lists, classes) for lists in LISTS[args.year]}
    check_no_overlap(pictures)
    train, test = pictures
    make_difficult_negative(pictures[train].values())
    label_files = {f"{split}_{name}.json": list(pictures[split].values()) for split in (train, test)}
    splits = without_bad(label_files, args)
    write_labels(folder, classes, splits)
    test_entries = splits[f"{test}_{name}.json"]
    num_difficult = sum(entry["target"].count(DIFFICULT) for entry in test_entries)
    skipped = "only bad" if args.skip_bad else "no"
    print(
        f"{skipped} images left out; "
        f"{num_difficult} {test} labels with only difficult objects count in no metric"
    )


def make_parser() -> Parser:
    parser = Parser(description="Make the label files of Pascal VOC, in data/voc07/ or data/voc12/.")
    parser.add_argument("--data_path", type=given_path, default="Dataset/VOCdevkit", help="holds VOC2007/")
    parser.add_argument("--year", choices=LISTS, default="2007", help="2012 is evaluated on val")
    parser.add_argument("--download", action="store_true", help="download it first (0.9 GB; 2012: 2 GB)")
    return parser


def check_is_incomplete(voc: Path, year: str) -> None:
    """Raise UserError if all lists of images are there: a download would replace them and the rest."""
    if all(path.exists() for lists in LISTS[year] for path in list_paths(voc, lists)):
        raise UserError(f"--download would replace the files in {voc}: leave it out, or move the folder away")


def download_voc(data_path: Path, year: str) -> None:
    """Download VOC2007 or VOC2012 to data_path, which must be the folder that the archives name."""
    if data_path.name != "VOCdevkit":
        raise UserError(f"--download needs a --data_path that ends in VOCdevkit, not {data_path}")
    from torchvision.datasets import VOCDetection  # imports torch

    image_sets = ("trainval", "test") if year == "2007" else ("trainval",)
    for image_set in image_sets:
        with reporting_errors(f"cannot download VOC{year} {image_set} to {data_path}"):
            VOCDetection(data_path.parent, year=year, image_set=image_set, download=True)


def make_difficult_negative(entries: Iterable[Entry]) -> None:
    """Turn targets into 1 and 0 for training, where a class with only difficult objects counts as absent."""
    for entry in entries:
        entry["target"] = [int(value == POSITIVE) for value in entry["target"]]


def read_lists(voc: Path, lists: str, classes: list[str]) -> Pictures:
    """Return the label file entries of the images in ImageSets/Main/<list>.txt, sorted by image id."""
    sources = {image_id: path for path in list_paths(voc, lists) for image_id in read_ids(path)}
    pictures: Pictures = {}
    for image_id, source in tqdm(sorted(sources.items()), desc=lists, unit="img", disable=None):
        image, key = listed_file(voc / "JPEGImages", f"{image_id}.jpg", source)
        annotation, _ = listed_file(voc / "Annotations", f"{image_id}.xml", source)
        target = read_annotation(annotation, classes)
        entry: Entry = {"target": target, "img_path": image.as_posix()}
        # The lists may name an image twice, as 000005 and ./000005: POSITIVE > DIFFICULT > ABSENT.
        same_image = pictures.setdefault(key, entry)
        same_image["target"] = [max(values) for values in zip(same_image["target"], target)]
    return pictures


def list_paths(voc: Path, lists: str) -> list[Path]:
    """Return the files with the image ids of one or more lists, joined by +."""
    return [voc / "ImageSets" / "Main" / f"{name}.txt" for name in lists.split("+")]


def read_ids(path: Path) -> list[str]:
    """Return the image ids of a split: the first word of each line. Raises UserError if there are none."""
    with reporting_errors(f"{path} is not a text file: unpack the data set again"):
        ids = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{path} lists no images: unpack the data set again")
    return ids


def read_annotation(path: Path, classes: list[str]) -> list[int]:
    """Return the target (C) of an annotation: POSITIVE, ABSENT, or DIFFICULT if all its objects are."""
    target = dict.fromkeys(classes, ABSENT)
    with reporting_errors(f"{path} is not a VOC annotation in valid XML"):
        root = ET.parse(path).getroot()  # expat refuses entities that would fill the memory
        if root.tag != "annotation":
            raise ValueError(f"it holds <{root.tag}>, not <annotation>")
        for item in root.findall("object"):
            name = (item.findtext("name") or "").strip()
            if name not in target:
                raise ValueError(f"classes.json has no class {describe_unknown(name, classes)}")
            difficult = (item.findtext("difficult") or "0").strip()
            value = {"0": POSITIVE, "1": DIFFICULT}[difficult]
            target[name] = max(target[name], value)  # POSITIVE > DIFFICULT > ABSENT
    return list(target.values())


if __name__ == "__main__":
    run_script(main)
