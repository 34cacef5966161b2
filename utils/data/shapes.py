"""The files of the built-in data set shapes: images, label files, and a record of its options."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.datasets import DATASETS, label_file
from utils.data.drawing import DIFFICULTIES, SHAPES, draw_scene
from utils.data.label_entries import Entry, Splits
from utils.data.label_writing import check_label_file, write_labels
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_write, read_json, write_json_list
from utils.runtime.locks import waiting_for_lock
from utils.runtime.output_checks import check_folder

FOLDER = Path("data/shapes")
LABEL_FILES = ("train.json", "test.json")
RECORD = "options.txt"
LOCK = ".lock"  # only while a process makes the data set


@dataclass(frozen=True)
class ShapesOptions:
    """What the images depend on; size: side of an image in pixels. difficulty: a key of DIFFICULTIES."""

    difficulty: str = "easy"
    num_train: int = 3000
    num_test: int = 1000
    size: int = 64
    seed: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def make_missing_shapes() -> None:
    """Make the data set shapes unless it exists."""
    if not label_file(DATASETS["shapes"], "test").exists():
        print("The data set shapes is missing: making it with utils/prepare_shapes.py")
        make_shapes(FOLDER, ShapesOptions())


def make_shapes(folder: Path, options: ShapesOptions, overwrite: bool = False) -> None:
    """Make the data set in a folder; replace one that was made with the same options.

    Writes images/, classes.json, train.json, test.json and options.txt. Raises UserError if the folder holds
    something else, or with other options (unless overwrite).
    """
    check_folder(folder, "--out_dir")
    was_made = is_made(folder, options)
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_for_lock(folder / LOCK):  # another process may be making the same data set
        if not overwrite:
            check_same_options(folder, options)
        check_holds_shapes(folder)
        if was_made or not is_made(folder, options):  # else it was made while this process waited
            write_shapes(folder, options)
    print(f"made shapes in {folder} with {options}")


def check_same_options(folder: Path, options: ShapesOptions) -> None:
    """Raise UserError if a folder holds a data set that was made with other options."""
    record = folder / RECORD
    if any((folder / file).exists() for file in LABEL_FILES):
        before = record.read_text() if record.exists() else "unknown options"
        if before != str(options):
            raise UserError(f"--out_dir {folder} holds shapes with {before}: add --overwrite")


def check_holds_shapes(folder: Path) -> None:
    """Raise UserError if a folder holds something other than a data set of shapes, or parts of one."""
    names = {path.name for path in folder.glob("*")} - {LOCK}
    is_own = not names
    if "classes.json" in names:
        images = {path.name for path in (folder / "images").glob("*")}
        is_own = read_json(folder / "classes.json") == list(SHAPES) and images <= {"train", "test"}
    record = folder / RECORD
    if record.exists() and not record.read_text().startswith("difficulty "):
        is_own = False
    if not is_own:
        raise UserError(f"--out_dir {folder} holds something other than a data set of shapes: name another")
    for file in LABEL_FILES:
        check_label_file(folder / file)


def is_made(folder: Path, options: ShapesOptions) -> bool:
    """Return whether a folder holds the whole data set, made with these options."""
    record = folder / RECORD
    is_whole = all((folder / file).exists() for file in LABEL_FILES)
    return is_whole and record.exists() and record.read_text() == str(options)


def write_shapes(folder: Path, options: ShapesOptions) -> None:
    """Write all files of the data set; the record of the options is the last one."""
    write_json_list(folder / "classes.json", SHAPES)
    splits = write_images(folder, options)
    write_labels(folder, list(SHAPES), splits)
    with atomic_write(folder / RECORD) as file:
        file.write(str(options))


def write_images(folder: Path, options: ShapesOptions) -> Splits:
    """Draw all images into images.part/, then rename it to images/; return the entries of the label files.

    The label files of an earlier data set are removed just before the images that they belong to.
    """
    images, part = folder / "images", folder / "images.part"
    shutil.rmtree(part, ignore_errors=True)  # a killed call left it
    counts = {"train": options.num_train, "test": options.num_test}
    splits = {}
    try:
        for stream, (split, count) in enumerate(counts.items()):
            (part / split).mkdir(parents=True)
            entries = []
            for index in tqdm(range(count), desc=f"shapes {split}", unit="img", disable=None):
                name = f"{split}/{index:05d}.jpg"
                seeds = (options.seed, stream, index)
                entries.append(write_scene(part / name, images / name, seeds, options))
            splits[f"{split}.json"] = entries
        for name in LABEL_FILES:  # never leave labels beside the images of another seed
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(images, ignore_errors=True)
        part.rename(images)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return splits


def write_scene(path: Path, final_path: Path, seeds: tuple[int, int, int], options: ShapesOptions) -> Entry:
    """Draw a scene from random seeds and write it to `path`; return its entry, which names `final_path`."""
    rng = np.random.default_rng(seeds)
    image, objects = draw_scene(rng, options.size, DIFFICULTIES[options.difficulty])
    image.save(path, quality=95, subsampling=0)
    names = {item["name"] for item in objects}
    target = [int(shape in names) for shape in SHAPES]
    return {"target": target, "img_path": final_path.as_posix(), "objects": objects}
