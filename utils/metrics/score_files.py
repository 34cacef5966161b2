"""Files of scores: .npz with scores, targets, ignore, names, paths and unknown_is_negative."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from utils.data.labels import Labels, Paths
from utils.metrics.blocks import Scores, TargetLabels
from utils.metrics.multilabel import Metrics, check_inputs, evaluate, image_blocks
from utils.runtime.archive import ENTRY_START, check_archive
from utils.runtime.errors import reporting_errors
from utils.runtime.files import atomic_write, check_fetched
from utils.runtime.progress import progress_bar


class SavedScores(NamedTuple):
    """The content of a file of scores, of N images and C classes; see `evaluate` for the arrays and the flag.

    scores: (N, C) float64 or float32. targets: (N, C). ignore: (N, C) bool. names: of the classes. paths: of
    the images.
    """

    scores: np.ndarray
    targets: np.ndarray
    ignore: np.ndarray
    names: list[str]
    paths: list[str]
    unknown_is_negative: bool

    @property
    def positives(self) -> np.ndarray:
        """Where a label is known and positive, bool (N, C)."""
        return (self.targets == 1) & ~self.ignore

    @property
    def counted(self) -> np.ndarray:
        """Where a label counts in the metrics other than mAP and AP, bool (N, C)."""
        return ~self.ignore | self.unknown_is_negative

    def evaluate(self, thresholds: np.ndarray) -> Metrics:
        """Return the metrics of the scores; thresholds: (C,)."""
        return evaluate(self.scores, self.targets, self.ignore, thresholds, self.unknown_is_negative)


def write_scores(path: Path, scores: Scores, labels: Labels, names: list[str]) -> None:
    """Write scores (N, C), the labels that they belong to, and C class names to an .npz file."""
    shape = scores.shape
    of_images = TargetLabels(labels.targets).of_images
    blocks = {
        "scores": (float, scores.of_images),
        "targets": (np.int8, lambda images: of_images(images).positives),
        "ignore": (bool, lambda images: ~of_images(images).known),
    }
    arrays = {
        "names": np.array(names),
        "unknown_is_negative": np.array(labels.unknown_is_negative),
    }
    with (
        atomic_write(path, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        progress_bar(len(blocks) * shape[0], "write scores", delay=1) as bar,
    ):
        for name, (dtype, block_of) in blocks.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                write_header(entry, shape, np.dtype(dtype))
                for images in image_blocks(shape):
                    block = block_of(images).astype(dtype)
                    entry.write(block.tobytes())
                    bar.update(len(block))
        with archive.open("paths.npy", "w", force_zip64=True) as entry:
            write_paths(entry, labels.paths)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def write_paths(entry: IO[bytes], paths: Paths) -> None:
    """Write the array of paths, which all take the space of the longest one, without having it in memory."""
    longest = max(1, max(map(len, paths), default=0))
    dtype = np.dtype((str, longest))
    write_header(entry, (len(paths),), dtype)
    for images in image_blocks((len(paths), longest)):
        block = [paths[row] for row in range(len(paths))[images]]
        entry.write(np.array(block, dtype).tobytes())


def write_header(entry: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write what stands in front of the values of an array in an .npz file."""
    description = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(entry, header)


def is_scores_file(path: Path) -> bool:
    """Return whether a file holds all that `write_scores` writes."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    return {f"{name}.npy" for name in SavedScores._fields} <= names


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an .npz file after checking that it is whole: a damaged one can seem to lack optional arrays."""
    if not path.is_file():
        raise ValueError("it is not a file")
    check_fetched(path)
    with open(path, "rb") as content:
        if content.read(len(ENTRY_START)) != ENTRY_START:
            raise ValueError("it is not an .npz file")
        check_archive(content, compressed=True)
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:  # a pickle could run code
            yield arrays


def read_scores(path: Path) -> SavedScores:
    """Read a file that `write_scores` or another program wrote; only scores and targets must be in it.

    Raises UserError if the file is no .npz file, or if its arrays are malformed or do not fit together.
    """
    with reporting_errors(f"{path} must hold scores and targets (N, C) as val.py --save_scores writes them"):
        if not path.exists():
            raise ValueError("there is no such file")
        with open_archive(path) as file:
            scores = file["scores"]
            if scores.dtype not in (np.float32, np.float64):
                scores = scores.astype(float)
            targets = file["targets"]
            ignore = file.get("ignore", np.zeros(targets.shape, bool)).astype(bool, copy=False)
            check_inputs(scores, targets, ignore)
            num_images, num_classes = scores.shape
            names = file.get("names", np.arange(num_classes)).astype(str)
            paths = file.get("paths", np.arange(num_images)).astype(str, copy=False)
            unknown_is_negative = bool(file.get("unknown_is_negative", False))
        if names.shape != (num_classes,) or paths.shape != (num_images,):
            raise ValueError(f"scores are {scores.shape}, but names are {names.shape}, paths {paths.shape}")
    return SavedScores(scores, targets, ignore, names.tolist(), paths.tolist(), unknown_is_negative)
