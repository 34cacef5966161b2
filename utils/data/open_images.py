"""The files of Open Images: its CSV files, its lists of classes, and the folders of its images.

LabelName: what the files call a label, such as /m/0bt9lr.
code: its number while the files are read, in the order in which they name it (`Codes`).
class: its number in the label files, in the order of the chosen LabelNames; a label may be none of them.
title: the name of a class in classes.json, its display name if no other class has that (`class_titles`).

A CSV file has up to 60 million rows, so no Python object is kept for a row. It needs no torch.
"""

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.data.classes import check_looks, check_names
from utils.data.label_rows import join_rows, pack
from utils.data.lookalikes import compose, look
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_fetched

CONFIDENCES = {"1": 1, "0": 0, "1.0": 1, "0.0": 0}  # of Confidence: verified to be in the image, or not to be
BLOCK = 2**16  # rows, or images, that are Python objects at the same time
MAX_ID_BYTES = 32  # an array of ids is as wide as its longest one; an ImageID has 16 hexadecimal digits


class TableForm(NamedTuple):
    """The form of a CSV file.

    columns: their names. fits: returns whether a row is of this form. description: what a row must be.
    """

    columns: list[str]
    fits: Callable[[list[str]], bool]
    description: str


def fits_label_table(cells: list[str]) -> bool:
    """Return whether a row can be a verified label."""
    if len(cells) != 4:
        return False
    image_id, _, _, confidence = cells
    return confidence in CONFIDENCES and image_id.isascii() and len(image_id) <= MAX_ID_BYTES


LABEL_TABLE = TableForm(
    columns=["ImageID", "Source", "LabelName", "Confidence"],
    fits=fits_label_table,
    description="ImageID,Source,LabelName,Confidence with a Confidence of 1 or 0",
)
NAME_TABLE = TableForm(
    columns=["LabelName", "DisplayName"],
    fits=lambda cells: len(cells) == 2,
    description="LabelName,DisplayName",
)


class Verified(NamedTuple):
    """The verified labels of the N images of a split that are there.

    packed (R,) int64: the rows, see label_rows.pack. is_listed (N,) bool: whether the file has a row on an
    image. num_missing: how many images it has rows on that are not there.
    """

    packed: np.ndarray
    is_listed: np.ndarray
    num_missing: int


class Codes(dict[str, int]):
    """Numbers LabelNames from 0, in the order in which they are first asked for."""

    def __missing__(self, label_name: str) -> int:
        self[label_name] = len(self)
        return self[label_name]


class DistinctIds:
    """Counts different ids, in memory for about twice as many as there are."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.num_held = 0
        self.most_held = BLOCK

    def add(self, ids: np.ndarray) -> None:
        """Add ids (N,)."""
        self.parts.append(np.unique(ids))
        self.num_held += len(self.parts[-1])
        if self.num_held > self.most_held:
            self.most_held = max(BLOCK, 2 * self.count())

    def count(self) -> int:
        """Return the number of different ids so far."""
        if self.parts:
            self.parts = [np.unique(np.concatenate(self.parts))]
            self.num_held = len(self.parts[0])
        return self.num_held


def find_table(folder: Path, name: str, boxable: bool) -> Path | None:
    """Return the CSV file of this name, also with a version in front (oidv6-), None if there is none.

    boxable: the variant -boxable of the file. Raises UserError if there are several versions.
    """
    ending = "-boxable" if boxable else ""
    pattern = re.compile(rf"(oidv\d+-)?{name}{ending}\.csv")
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if len(found) > 1:
        both = f"{found[0]} and {found[1].name}"
        raise UserError(f"{both} are two versions of one file: move one of them to another folder")
    return found[0] if found else None


def images_in(folder: Path) -> np.ndarray:
    """Return the ids of the images <id>.jpg in a folder, sorted: bytes (N,). A missing folder has none."""
    parts = [np.array([], np.bytes_)]
    if folder.is_dir():
        # One listing: to ask for each of 9 million files takes far longer, above all on a file server.
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries if entry.name.endswith(".jpg") and entry.is_file())
            ids = (os.fsencode(name.removesuffix(".jpg")) for name in names)
            short = (image_id for image_id in ids if len(image_id) <= MAX_ID_BYTES)
            while block := list(itertools.islice(short, BLOCK)):
                parts.append(np.array(block))
    image_ids = np.concatenate(parts)
    image_ids.sort()
    return image_ids


def read_verified(path: Path, image_ids: np.ndarray, codes: Codes) -> Verified:
    """Read a CSV file of verified labels; keep the rows of the images that are there.

    image_ids (N,): bytes, sorted. codes: numbers the LabelNames. Raises UserError if the file is malformed.
    """
    is_listed = np.zeros(len(image_ids), bool)
    missing = DistinctIds()
    packed: list[np.ndarray] = []
    for image_ids_of_rows, _, label_names, confidences in blocks_of_columns(path, LABEL_TABLE):
        ids = np.array(image_ids_of_rows, np.bytes_)
        labels = np.fromiter(map(codes.__getitem__, label_names), np.int64, len(ids))
        values = np.fromiter(map(CONFIDENCES.__getitem__, confidences), np.int64, len(ids))
        # Most images have their rows one after the other: look each run of rows up once.
        starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        run_lengths = np.diff(np.append(starts, len(ids)))
        run_ids = ids[starts]
        run_images = find_ids(run_ids, image_ids)
        is_there = run_images >= 0
        missing.add(run_ids[~is_there])
        is_listed[run_images[is_there]] = True
        images = np.repeat(run_images, run_lengths)
        kept = images >= 0
        packed.append(pack(images[kept], labels[kept], values[kept]))
    return Verified(join_rows(packed), is_listed, missing.count())


def blocks_of_columns(path: Path, form: TableForm) -> Iterator[list[tuple[str, ...]]]:
    """Yield the cells of each column of a CSV file, those of at most BLOCK rows at a time, without a header.

    Raises UserError for a row that is not of this form, and for a file without rows.
    """
    check_fetched(path)
    is_empty = True
    with (
        open(path, encoding="utf-8-sig", newline="") as file,
        tqdm(desc=path.name, unit="row", unit_scale=True, disable=None, leave=False) as bar,
        reporting_errors(f"{path} is not a CSV file of Open Images"),
    ):
        reader = csv.reader(file, strict=True)
        first_line = 1
        while block := list(itertools.islice(reader, BLOCK)):
            rows = []
            for line, cells in enumerate(block, first_line):
                if form.fits(cells) and cells != form.columns:
                    rows.append(cells)
                elif cells and cells != form.columns:
                    raise row_error(path, line, cells, form)
            if rows:
                yield list(zip(*rows))
                is_empty = False
            bar.update(len(rows))
            first_line = reader.line_num + 1
    if is_empty:
        raise UserError(f"{path} has no rows {','.join(form.columns)}: download it again")


def row_error(path: Path, line: int, cells: list[str], form: TableForm) -> UserError:
    """Return the error for a row that is not of this form."""
    fault = f"{path}, line {line} is not {form.description}: {','.join(cells)!r:.99}"
    return UserError(f"{fault}: download the file again, it may be incomplete")


def find_ids(ids: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Return the index of each id (R,) in image_ids (N,), which are sorted, and -1 for those not in it."""
    if not len(image_ids):
        return np.full(len(ids), -1)
    places = np.searchsorted(image_ids, ids)
    places[places == len(image_ids)] = 0
    return np.where(image_ids[places] == ids, places, -1)


def read_display_names(path: Path) -> dict[str, str]:
    """Read a file of class descriptions: {LabelName: DisplayName}. Raises UserError if it is malformed."""
    names = {}
    for label_names, display_names in blocks_of_columns(path, NAME_TABLE):
        for label_name, display_name in zip(label_names, display_names):
            names[label_name.strip()] = compose(display_name.strip())
    return names


def read_label_names(path: Path) -> list[str]:
    """Read a file with a LabelName a line; UserError if it has none, or one twice."""
    with reporting_errors(f"--classes {path} is not a text file with a LabelName a line"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    label_names = [line for line in lines if line]
    if not label_names:
        raise UserError(f"--classes {path} has no LabelName: write one a line, such as /m/0bt9lr")
    label_name, count = Counter(label_names).most_common(1)[0]
    if count > 1:
        raise UserError(f"--classes {path} has {label_name} more than once")
    return label_names


def class_titles(label_names: list[str], display_names: dict[str, str], source: Path) -> list[str]:
    """Return the name of each class: its display name, with the LabelName added where two print alike.

    A LabelName without a display name is itself the name. source: of the display names, for errors.
    """
    titles = [display_names.get(name) or name for name in label_names]
    num_alike = Counter(map(look, titles))
    for c, (title, label_name) in enumerate(zip(titles, label_names)):
        if num_alike[look(title)] > 1:
            titles[c] = f"{title} ({label_name})"
    check_looks(check_names(titles, source), source)
    return titles
