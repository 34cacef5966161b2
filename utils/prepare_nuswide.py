"""Make the label files of NUS-WIDE.

python utils/prepare_nuswide.py [--data_path Dataset/NUS-WIDE] [--keep_empty] [--verify]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.bad_images import parse_args, without_bad
from utils.data.classes import check_looks, check_names
from utils.data.label_entries import ListedEntries
from utils.data.labels import Paths, Targets
from utils.data.new_data_set import check_overwrite, write_data_set
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.listing import KnownFiles
from utils.runtime.output_checks import check_folder
from utils.runtime.script import run_script

FOLDER = Path("data/nuswide")
LABEL_FILES = {"Train": "train.json", "Test": "test.json"}  # of the splits as the archive writes them
LABELS = {"1": 1, "0": 0}
UNPACK_AGAIN = "unpack the data set again"


class Folder:
    """A folder of the archive; it is listed once, and upper and lower case are the same in it.

    Copies of the archive differ in case, such as Imagelist and ImageList.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = {name.casefold(): name for name in os.listdir(path)}

    def find(self, *names: str) -> Path:
        """Return the path of the first of these names that is there; UserError if none is."""
        for name in names:
            if name.casefold() in self.names:
                return self.path / self.names[name.casefold()]
        missing = " or ".join(str(self.path / name) for name in names)
        raise UserError(
            f"{missing} is missing: set --data_path to the folder of NUS-WIDE, or unpack it again"
        )


class Images:
    """The images below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known_files = KnownFiles()

    def find(self, name: str, source: Path) -> str | None:
        """Return the path of an image that `source` lists, None if it is missing; UserError if it is outside.

        Some copies of the archive have all images in one folder, without the folders of the lists.
        """
        relative = Path(name.replace("\\", "/"))
        if relative.anchor or ".." in relative.parts:
            raise UserError(f"{source}: {name!r} points outside of {self.root}/: download the file again")
        for path in (self.root / relative, self.root / relative.name):
            if os.fsencode(path.as_posix()) in self.known_files:
                return path.as_posix()
        return None


def main() -> None:
    args = parse_args(make_parser())
    check_folder(FOLDER, "label files")
    check_overwrite(FOLDER, overwrite=True)
    if not args.data_path.is_dir():
        raise UserError(f"{args.data_path} is missing: set --data_path to the folder of NUS-WIDE")
    root = Folder(args.data_path)
    classes = read_concepts(root)
    images = Images(root.find("Flickr", "images"))
    splits = {}
    for split, label_file in LABEL_FILES.items():
        splits[label_file] = read_listed_images(root, split, classes, images, args.keep_empty)
    check_paths_differ(splits)
    write_data_set(FOLDER, classes, without_bad(splits, args))


def make_parser() -> Parser:
    parser = Parser(description="Make the label files and the list of classes of NUS-WIDE, in data/nuswide/.")
    path_help = "holds Concepts81.txt, ImageList/, Groundtruth/ and Flickr/"
    parser.add_argument("--data_path", type=given_path, default="Dataset/NUS-WIDE", help=path_help)
    empty_help = "keep the images that have none of the classes"
    parser.add_argument("--keep_empty", action="store_true", help=empty_help)
    return parser


def read_concepts(root: Folder) -> list[str]:
    """Return the class names in the order of Concepts81.txt."""
    folder = root
    if "concepts81.txt" not in root.names and "conceptslist" in root.names:  # as one archive unpacks it
        folder = Folder(root.find("ConceptsList"))
    path = folder.find("Concepts81.txt")
    classes = check_names(read_lines(path), path)
    check_looks(classes, path)
    return classes


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, without blanks around them."""
    with reporting_errors(f"{path} is not a text file: {UNPACK_AGAIN}"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [line for line in lines if line]


def read_listed_images(
    root: Folder, split: str, classes: list[str], images: Images, keep_empty: bool
) -> ListedEntries:
    """Return the entries of the images of a split that are there; say how many images are left out.

    Raises UserError if files are missing or do not fit together, or if no images are left.
    """
    image_list = Folder(root.find("ImageList")).find(f"{split}Imagelist.txt")
    names = read_lines(image_list)
    targets = read_targets(root, split, classes, image_list, len(names))
    paths = [images.find(name, image_list) for name in tqdm(names, desc=split, unit="img", disable=None)]
    is_there = np.array([path is not None for path in paths], bool)
    print(f"{image_list}: {np.sum(~is_there)} images left out because they are not in {images.root}")
    kept = is_there
    if not keep_empty:
        has_label = targets.any(axis=1)
        print(f"{image_list}: {np.sum(is_there & ~has_label)} images left out because they have no label")
        kept = is_there & has_label
    if not kept.any():
        raise UserError(f"none of the images that {image_list} lists is left: {UNPACK_AGAIN}")
    kept_paths = (path for path, is_kept in zip(paths, kept) if path is not None and is_kept)
    return ListedEntries(Paths.of(kept_paths), Targets.of(targets[kept]))


def read_targets(
    root: Folder, split: str, classes: list[str], image_list: Path, num_images: int
) -> np.ndarray:
    """Return the targets of the images of a list, int8 (num_images, C); UserError if a file does not fit."""
    folder = Folder(Folder(root.find("Groundtruth")).find("TrainTestLabels"))
    targets = np.empty((num_images, len(classes)), np.int8)
    for c, class_name in enumerate(tqdm(classes, desc=f"{split} labels", unit="class", disable=None)):
        path = folder.find(f"Labels_{class_name}_{split}.txt")
        lines = read_lines(path)
        if len(lines) != num_images:
            counts = f"{path} has {len(lines)} labels, but {image_list} lists {num_images} images"
            raise UserError(f"{counts}: {UNPACK_AGAIN}")
        with reporting_errors(f"{path} must have 0 or 1 in each line"):
            targets[:, c] = [LABELS[line] for line in lines]
    return targets


def check_paths_differ(splits: dict[str, ListedEntries]) -> None:
    """Raise UserError if an image is listed twice."""
    seen: dict[str, str] = {}
    for label_file, entries in splits.items():
        for path in entries.paths:
            if path in seen:
                raise UserError(f"{path} is listed for {seen[path]} and for {label_file}: {UNPACK_AGAIN}")
            seen[path] = label_file


if __name__ == "__main__":
    run_script(main)
