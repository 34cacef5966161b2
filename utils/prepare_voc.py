"""Make the label files of Pascal VOC 2007 or 2012.

python utils/prepare_voc.py --data_path Dataset/VOCdevkit [--year 2007|2012] [--download] [--verify]
"""

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.label_files import class_names, write_labels
from utils.runtime.cli import Parser, UserError, given_path, run
from utils.runtime.files import check_folder
from utils.verify import add_verify_arguments, verify

POSITIVE, DIFFICULT, ABSENT = 1, 0, -1
# The label files of a year, for training and for evaluation, and the lists of images that each takes.
YEARS = {
    "2007": ({"trainval": ["train", "val"]}, {"test": ["test"]}),
    "2012": ({"train": ["train"], "trainval": ["train", "val"]}, {"val": ["val"]}),
}


def main() -> None:
    parser = Parser(description="Make the label files of Pascal VOC, in data/voc07/ or data/voc12/.")
    parser.add_argument(
        "--data_path",
        type=given_path,
        default=Path("Dataset/VOCdevkit"),
        help="the folder VOCdevkit, which holds VOC2007/ or VOC2012/ [default: %(default)s]",
    )
    parser.add_argument(
        "--year",
        choices=YEARS,
        default="2007",
        help="the test labels of 2012 are not public: its val is for evaluation [default: %(default)s]",
    )
    parser.add_argument(
        "--download", action="store_true", help="first download it to --data_path (0.9 GB; 2012: 2 GB)"
    )
    add_verify_arguments(parser)
    args = parser.parse_args()

    name = f"voc{args.year[2:]}"
    check_folder(Path("data", name), "label files")
    if args.download:
        download(args.data_path, args.year)
    voc = args.data_path / f"VOC{args.year}"
    if not voc.is_dir():
        raise UserError(
            f"{voc} is missing: --data_path names the folder that holds {voc.name}/; --download fetches it"
        )
    classes = class_names(name)
    training, evaluation = YEARS[args.year]
    splits = {split: read_split(voc, lists, classes) for split, lists in (training | evaluation).items()}
    (train, *_), (test,) = training, evaluation
    both = {entry["img_path"] for entry in splits[train]} & {entry["img_path"] for entry in splits[test]}
    if both:
        raise UserError(f"{min(both)} is listed in {train} and in {test}: unpack the data set again")
    verify(sum(splits.values(), []), args)
    ignored = sum(entry["target"].count(DIFFICULT) for entry in splits[test])
    # In training, difficult objects alone count as absence.
    for entry in (entry for split in training for entry in splits[split]):
        entry["target"] = [int(value == POSITIVE) for value in entry["target"]]

    write_labels(Path("data", name), classes, {f"{split}_{name}.json": splits[split] for split in splits})
    print(f"no images left out; {ignored} {test} labels, with only difficult objects, count in no metric")


def download(data_path: Path, year: str) -> None:
    """Fetch and unpack VOC by torchvision, which knows the checksums."""
    if data_path.name != "VOCdevkit":
        raise UserError(
            f"--download unpacks to a folder named VOCdevkit, so --data_path cannot be {data_path}"
        )
    from torchvision.datasets import VOCDetection

    for split in ("trainval", "test") if year == "2007" else ("trainval",):
        try:
            VOCDetection(data_path.parent, year=year, image_set=split, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot download VOC{year} {split} to {data_path}: {error}") from None


def read_split(voc: Path, names: list[str], classes: list[str]) -> list[dict]:
    """Return the label file entries of the images listed in ImageSets/Main/<name>.txt, sorted by image id."""
    ids = sorted(
        {image_id for name in names for image_id in read_ids(voc / "ImageSets" / "Main" / f"{name}.txt")}
    )
    present = set(os.listdir(voc / "JPEGImages"))
    entries = []
    for image_id in tqdm(ids, desc="+".join(names), unit="img", disable=None):
        name = f"{image_id}.jpg"
        image = voc / "JPEGImages" / name
        if name not in present:
            raise UserError(f"{image} is missing, though ImageSets/Main/ lists it: unpack the data set again")
        target = read_target(voc / "Annotations" / f"{image_id}.xml", classes)
        entries.append({"target": target, "img_path": image.as_posix()})
    return entries


class WithoutEntities(ET.TreeBuilder):
    """An XML tree without a document type, which VOC's lack, since entities can expand to gigabytes."""

    def doctype(self, *declaration: str) -> None:
        raise ValueError("it declares a document type, which annotations of VOC do not have")


def read_ids(path: Path) -> list[str]:
    """Read the image ids of a split, the first word of each line."""
    try:
        ids = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: unpack the data set again") from None
    if not ids:
        raise UserError(f"{path} lists no images: unpack the data set again")
    for image_id in ids:
        if Path(image_id).name != image_id:
            raise UserError(f"{path}: the image id {image_id!r} leads out of JPEGImages/: it is not VOC's")
    return ids


def read_target(path: Path, classes: list[str]) -> list[int]:
    """Read the target of an annotation: POSITIVE for any object not difficult, else DIFFICULT or ABSENT.

    Raises UserError where the XML is malformed or names another class.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, though its image is listed: unpack the data set again")
    try:
        root = ET.parse(path, ET.XMLParser(target=WithoutEntities())).getroot()
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: an encoding expat does not know
        raise UserError(f"{path} is not valid XML: {error}") from None
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
    run(main)
