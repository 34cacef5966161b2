"""Make the label files of Pascal VOC 2007.

python utils/prepare_voc.py --data_path Dataset/VOCdevkit [--download] [--verify]
"""

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.cli import Parser, UserError, given_path, run
from utils.files import check_folder
from utils.label_files import class_names, write_labels
from utils.verify import add_verify_arguments, verify

POSITIVE, DIFFICULT, ABSENT = 1, 0, -1


def main() -> None:
    parser = Parser(
        description="Make data/voc07/trainval_voc07.json and test_voc07.json from Pascal VOC 2007."
    )
    parser.add_argument(
        "--data_path",
        type=given_path,
        default=Path("Dataset/VOCdevkit"),
        help="the folder VOCdevkit, which holds VOC2007/ [default: %(default)s]",
    )
    parser.add_argument(
        "--download", action="store_true", help="first download VOC2007 to --data_path (0.9 GB)"
    )
    add_verify_arguments(parser)
    args = parser.parse_args()

    check_folder(Path("data/voc07"), "label files")
    if args.download:
        download(args.data_path)
    voc = args.data_path / "VOC2007"
    if not voc.is_dir():
        raise UserError(
            f"{voc} is missing: --data_path names the folder that holds VOC2007/; --download fetches it"
        )
    classes = class_names("voc07")
    trainval = read_split(voc, ["train", "val"], classes)
    test = read_split(voc, ["test"], classes)
    both = {entry["img_path"] for entry in trainval} & {entry["img_path"] for entry in test}
    if both:
        raise UserError(f"{min(both)} is listed for training and for the test: unpack the data set again")
    verify(trainval + test, args)
    ignored = sum(entry["target"].count(DIFFICULT) for entry in test)
    # In training, difficult objects alone count as absence.
    for entry in trainval:
        entry["target"] = [int(value == POSITIVE) for value in entry["target"]]

    write_labels(Path("data/voc07"), classes, {"trainval_voc07.json": trainval, "test_voc07.json": test})
    print(f"no images left out; {ignored} test labels, with only difficult objects, count in no metric")


def download(data_path: Path) -> None:
    """Fetch and unpack VOC2007, trainval and test, by torchvision, which knows the checksums."""
    if data_path.name != "VOCdevkit":
        raise UserError(
            f"--download unpacks to a folder named VOCdevkit, so --data_path cannot be {data_path}"
        )
    from torchvision.datasets import VOCDetection

    for split in ("trainval", "test"):
        try:
            VOCDetection(data_path.parent, year="2007", image_set=split, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot download VOC2007 {split} to {data_path}: {error}") from None


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
            raise UserError(f"{path}: the class {name!r} is not in data/voc07/classes.json")
        difficult = (item.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise UserError(f"{path}: <difficult> must be 0 or 1, not {difficult!r}")
        index = classes.index(name)
        target[index] = max(target[index], DIFFICULT if difficult == "1" else POSITIVE)
    return target


if __name__ == "__main__":
    run(main)
