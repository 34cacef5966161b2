"""Make the label files of Pascal VOC 2007 or 2012.

python utils/prepare_voc.py --data_path Dataset/VOCdevkit [--year 2007|2012] [--download] [--verify]
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.label_files import class_names, listed_file, write_labels
from utils.runtime.cli import Parser, UserError, given_path, parsing, run_script
from utils.runtime.files import check_folder
from utils.verify import add_verify_arguments, verify

POSITIVE, DIFFICULT, ABSENT = 1, 0, -1  # the targets in the label file for evaluation
# The image lists of each split. The first split is for training, the last one for evaluation.
SPLITS = {
    "2007": {"trainval": ["train", "val"], "test": ["test"]},
    "2012": {"train": ["train"], "trainval": ["train", "val"], "val": ["val"]},
}


def main() -> None:
    parser = Parser(description="Make the label files of Pascal VOC, in data/voc07/ or data/voc12/.")
    default, contents = Path("Dataset/VOCdevkit"), "folder of VOC2007/ or VOC2012/"
    parser.add_argument("--data_path", type=given_path, default=default, help=contents)
    parser.add_argument("--year", choices=SPLITS, default="2007", help="2012 is evaluated on val")
    parser.add_argument("--download", action="store_true", help="download it first (0.9 GB; 2012: 2 GB)")
    add_verify_arguments(parser)
    args = parser.parse_args()

    name = f"voc{args.year[2:]}"
    check_folder(Path("data", name), "label files")
    if args.download:
        download(args.data_path, args.year)
    voc = args.data_path / f"VOC{args.year}"
    if not voc.is_dir():
        raise UserError(f"{voc} is missing: set --data_path to the folder of {voc.name}/, or use --download")
    classes = class_names(name)
    splits = {split: read_split(voc, lists, classes) for split, lists in SPLITS[args.year].items()}
    train, *_, test = splits
    both = {entry["img_path"] for entry in splits[train]} & {entry["img_path"] for entry in splits[test]}
    if both:
        raise UserError(f"{min(both)} is listed in {train} and in {test}: unpack the data set again")
    verify(splits, args)
    num_difficult = sum(entry["target"].count(DIFFICULT) for entry in splits[test])
    training_entries = [entry for split in splits if split != test for entry in splits[split]]
    for entry in training_entries:  # here, a class with only difficult objects counts as absent
        entry["target"] = [int(value == POSITIVE) for value in entry["target"]]
    write_labels(Path("data", name), classes, {f"{split}_{name}.json": splits[split] for split in splits})
    print(f"no images left out; {num_difficult} {test} labels with only difficult objects count in no metric")


def download(data_path: Path, year: str) -> None:
    """Download and unpack VOC with torchvision, which checks the checksums."""
    if data_path.name != "VOCdevkit":
        raise UserError(f"--download needs a --data_path that ends in VOCdevkit, not {data_path}")
    from torchvision.datasets import VOCDetection

    for split in ("trainval", "test") if year == "2007" else ("trainval",):
        with parsing(f"cannot download VOC{year} {split} to {data_path}"):
            VOCDetection(data_path.parent, year=year, image_set=split, download=True)


def read_split(voc: Path, lists: list[str], classes: list[str]) -> list[dict]:
    """Return the label file entries of the images in ImageSets/Main/<list>.txt, sorted by image id."""
    list_paths = [voc / "ImageSets" / "Main" / f"{name}.txt" for name in lists]
    sources = {image_id: path for path in list_paths for image_id in read_ids(path)}
    entries = []
    for image_id, source in tqdm(sorted(sources.items()), desc="+".join(lists), unit="img", disable=None):
        image = listed_file(voc / "JPEGImages", f"{image_id}.jpg", source)
        annotation = listed_file(voc / "Annotations", f"{image_id}.xml", source)
        entries.append({"target": read_target(annotation, classes), "img_path": image.as_posix()})
    return entries


def read_ids(path: Path) -> list[str]:
    """Return the image ids of a split: the first word of each line. Raises UserError if there are none."""
    with parsing(f"{path} is not a text file: unpack the data set again"):
        ids = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{path} lists no images: unpack the data set again")
    return ids


class TreeWithoutDoctype(ET.TreeBuilder):
    """Builds an XML tree but refuses a document type: VOC has none, and its entities can fill the memory."""

    def doctype(self, *declaration: str) -> None:
        raise ValueError("it declares a document type, which VOC annotations do not have")


def read_target(path: Path, classes: list[str]) -> list[int]:
    """Return the target (C) of an annotation: POSITIVE, ABSENT, or DIFFICULT if all its objects are.

    Raises UserError if the XML is malformed or names a class that is not in `classes`.
    """
    with parsing(f"{path} is not valid XML"):
        root = ET.parse(path, ET.XMLParser(target=TreeWithoutDoctype())).getroot()
    if root.tag != "annotation":
        raise UserError(f"{path} is not a VOC annotation: it holds <{root.tag}>, not <annotation>")
    target = [ABSENT] * len(classes)
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if name not in classes:
            raise UserError(f"{path}: the class {name!r} is not in classes.json")
        difficult = (item.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise UserError(f"{path}: <difficult> must be 0 or 1, not {difficult!r}")
        index = classes.index(name)
        target[index] = max(target[index], DIFFICULT if difficult == "1" else POSITIVE)
    return target


if __name__ == "__main__":
    run_script(main)
