"""Measure how time and memory grow with the number of images and of classes.

python benchmarks/scale.py [--quick] [--out FILE.json]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import io
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy as np
from PIL import Image

from benchmarks.bench import describe_machine, is_figures_file
from benchmarks.timing import REPOSITORY, Usage, run_measured
from utils.runtime.arguments import Parser, given_path
from utils.runtime.files import write_json
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.script import run_script

PHOTO_SHAPE = (48, 64, 3)
NUM_PHOTOS = 100  # different ones
FOLDER_SIZE = 1000
LABELS_PER_IMAGE = 2
FEW_CLASSES = 20
HEAD = "| stage | size | seconds | growth | should be | peak MiB | growth |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Sizes:
    """The sizes at which the stages are measured, each list in ascending order.

    images: of a data set with FEW_CLASSES. classes: of a data set with num_images. labelled: photographs that
    demo.py labels. scored: images and classes of an evaluation. heads: classes of a classifier.
    """

    images: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)
    classes: Sequence[int] = (20, 100, 1_000, 10_000)
    num_images: int = 10_000
    labelled: Sequence[int] = (100, 1_000, 10_000)
    heads: Sequence[int] = (80, 1_000, 10_000)


QUICK = Sizes(
    images=(100, 1_000, 10_000),
    classes=(20, 200, 2_000),
    num_images=1_000,
    labelled=(10, 100),
    heads=(80, 1_000),
)


@dataclass
class Row:
    """What a stage took at one size; the memory is the peak in MiB.

    The growths are the cost over that of the smaller size before it, None in a stage's first row;
    expected_growth is that of the time if the cost follows the work.
    """

    stage: str
    size: str
    seconds: float
    memory: float
    growth: float | None = None
    expected_growth: float | None = None
    memory_growth: float | None = None


def main() -> None:
    args = parse_args()
    sizes = QUICK if args.quick else Sizes()
    machine = describe_machine()
    for key, value in machine.items():
        print(f"{key:10} {value}")
    print(f"\n{HEAD}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure_all(Path(folder), sizes):
            rows.append(row)
            print(format_row(row), flush=True)
            if args.out:  # after each row, so that a run that is cut off leaves its figures
                write_json(args.out, {"machine": machine, "rows": [asdict(row) for row in rows]})
    if args.out:
        print(f"written to {args.out}")


def measure_all(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Measure every stage at each of its sizes; each runs in a process of its own that works in `folder`."""
    make_photos(folder / "photos", max(*sizes.images, sizes.num_images))
    for num_images in sizes.images:
        write_table(folder / f"images_{num_images}.csv", num_images, FEW_CLASSES)
    for num_classes in sizes.classes:
        write_table(folder / f"classes_{num_classes}.csv", sizes.num_images, num_classes)
    run_stage(folder, "save_model", "model.pth", FEW_CLASSES)
    yield from measure_numbers_of_images(folder, sizes)
    yield from measure_numbers_of_classes(folder, sizes)


def measure_numbers_of_images(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Measure the stages on more and more images of few classes."""

    def measure(stage: str, function: Callable[[int], Usage], follows_size: bool = True) -> Iterator[Row]:
        return rows_of(stage, "images", sizes.images, function, follows_size)

    yield from measure("prepare_csv", lambda n: prepare(folder, f"images_{n}"))
    yield from measure("read the labels", lambda n: run_stage(folder, "load_labels", f"images_{n}"))
    yield from measure("order of an epoch", lambda n: run_stage(folder, "make_order", n))
    first_batch = "first batch of 8 workers"
    yield from measure(first_batch, lambda n: run_stage(folder, "load_first_batch", f"images_{n}"), False)
    yield from measure("evaluate", lambda n: run_stage(folder, "evaluate_scores", n, FEW_CLASSES))
    dataset = f"images_{sizes.images[0]}"
    yield from rows_of("demo.py --csv", "images", sizes.labelled, lambda n: label(folder, n, dataset), True)


def measure_numbers_of_classes(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Measure the stages on more and more classes of the same images."""

    def measure(stage: str, function: Callable[[int], Usage], follows_size: bool) -> Iterator[Row]:
        name = f"{stage}, {sizes.num_images:,} images"
        return rows_of(name, "classes", sizes.classes, function, follows_size)

    yield from measure("prepare_csv", lambda c: prepare(folder, f"classes_{c}"), False)
    yield from measure("read the labels", lambda c: run_stage(folder, "load_labels", f"classes_{c}"), False)
    yield from measure("evaluate", lambda c: run_stage(folder, "evaluate_scores", sizes.num_images, c), True)
    for num_heads in (1, 6):
        step = partial(run_stage, folder, "train_head", num_heads)
        yield from rows_of(f"training step of {num_heads} heads", "classes", sizes.heads, step, True)


def rows_of(
    stage: str, unit: str, sizes: Sequence[int], measure: Callable[[int], Usage], follows_size: bool
) -> Iterator[Row]:
    """Measure a stage at each size; follows_size: whether its time should grow as the size does."""
    before: tuple[int, Usage] | None = None
    for size in sizes:
        usage = measure(size)
        row = Row(stage, f"{size:,} {unit}", usage.seconds, usage.memory)
        if before:
            smaller, usage_before = before
            row.growth = usage.seconds / usage_before.seconds
            row.expected_growth = size / smaller if follows_size else 1.0
            row.memory_growth = usage.memory / usage_before.memory
        before = size, usage
        yield row


def run_stage(folder: Path, stage: str, *arguments: object) -> Usage:
    """Run a stage of scale_stages.py in a process of its own."""
    command = [sys.executable, str(REPOSITORY / "benchmarks/scale_stages.py"), stage, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    taken, memory = map(float, result.stdout.split())
    return Usage(taken, memory)


def prepare(folder: Path, name: str) -> Usage:
    """Make a data set of a table."""
    script = str(REPOSITORY / "utils/prepare_csv.py")
    return run_measured([script, f"{name}.csv", "--dataset", name, "--img_dir", "photos"], folder)


def label(folder: Path, num_photos: int, dataset: str) -> Usage:
    """Label photographs by demo.py, with the classes of a data set."""
    photos = folder / f"labelled_{num_photos}"
    make_photos(photos, num_photos)
    words = ["--load_from", "model.pth", "--dataset", dataset, "--device", "cpu"]
    words += ["--img_size", "64", "--img_dir", photos.name, "--csv", f"{photos.name}.csv"]
    return run_measured([str(REPOSITORY / "demo.py"), *words], folder)


def make_photos(folder: Path, number: int) -> None:
    """Make a folder of so many photographs, each a file of its own: hard links of a file are one image."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(NUM_PHOTOS):
        content = io.BytesIO()
        Image.fromarray(rng.integers(256, size=PHOTO_SHAPE, dtype=np.uint8)).save(content, "JPEG")
        contents.append(content.getvalue())
    for index in range(number):
        path = folder / photo_name(index)
        if index % FOLDER_SIZE == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(contents[index % NUM_PHOTOS])


def photo_name(index: int) -> str:
    """Return the path of a photograph in its folder; a folder below it has at most FOLDER_SIZE."""
    return f"{index // FOLDER_SIZE:04d}/{index:07d}.jpg"


def write_table(path: Path, num_images: int, num_classes: int) -> None:
    """Write a table of images and the names of their classes; each class has images, if there are enough."""
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=(num_images, LABELS_PER_IMAGE))
    labels[:, 0] = np.arange(num_images) % num_classes
    with open(path, "w") as file:
        file.write("image,labels\n")
        for index, names in enumerate(labels.tolist()):
            file.write(f"{photo_name(index)},{';'.join(f'class{name}' for name in names)}\n")


def format_row(row: Row) -> str:
    """Format a row of the table, in Markdown."""
    cells = [row.stage, row.size, f"{row.seconds:.3g}", times(row.growth), times(row.expected_growth)]
    return f"| {' | '.join([*cells, f'{row.memory:.0f}', times(row.memory_growth)])} |"


def times(growth: float | None) -> str:
    """Return a growth as text."""
    return "" if growth is None else f"× {growth:.3g}"


def parse_args() -> argparse.Namespace:
    parser = Parser("Measure how time and memory grow with the number of images and of classes.")
    parser.add_argument("--quick", action="store_true", help="up to 10,000 images and 2,000 classes")
    parser.add_argument("--out", type=given_path, metavar="FILE", help="write the figures to this JSON file")
    args = parser.parse_args()
    check_file(args.out, "--out")
    check_replaceable(args.out, "--out", is_figures_file, "benchmarks/scale.py")
    return args


if __name__ == "__main__":
    run_script(main)
