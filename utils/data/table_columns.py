"""The columns of a table of labels: what each one is, and what its cells say. It needs no torch.

A table has a column of image names, and either a column of label lists or a column per class. A column split
is optional.
"""

import re
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.classes import KnownClasses, check_looks, check_names
from utils.data.labels import IGNORED, Targets, TargetsBuilder
from utils.data.lookalikes import closest, look
from utils.runtime.errors import UserError

UNKNOWN_BYTE = IGNORED % 256  # the byte of IGNORED in an int8 array
# The target of each cell in the column of a class; pandas writes 1.0 if other cells are empty.
CELLS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": UNKNOWN_BYTE}
# Names of columns as `column_key` writes them; the first one of each is the documented one.
IMAGE_KEYS = (
    *("image", "images", "img", "imgs", "photo", "picture", "file", "path"),
    *("filename", "filepath", "imagefile", "imagename", "imagepath", "imgname", "imgpath"),
)
LABEL_KEYS = ("labels", "label", "tags", "tag", "classes", "class", "classname", "categories", "category")
SPLIT_KEYS = ("split", "splits")
SPLIT_WORDS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
NAME_IT_SPLIT = "if it holds train, val and test, name it split"


class TableRow(NamedTuple):
    """A row of a table, and the line of the file that it ends on."""

    line: int
    cells: list[str]


class Columns:
    """The columns of a table, filled row by row. They take little more memory than the labels.

    images: names of files. lists: for each column that may hold lists of labels, its cells. Every column but
    those of images and splits may be the column of a class; these are numbered from 0. flags: their cells.
    other_cells: the first cell of each that is not 1, 0 or empty, and the line of it.
    """

    def __init__(self, header: list[str], path: Path) -> None:
        """Find out from the header what the columns are; UserError if it lacks one, or has one twice."""
        header = [name.strip() for name in header]
        if len(header) < 2:
            raise header_error(path, header)
        self.path = path
        self.header = header
        self.unnamed = [number for number, name in enumerate(header) if is_unnamed(name)]
        self.image_column = find_image_column(header, path)
        self.split_column = find_split_column(header, path)
        taken = {*self.unnamed, self.image_column, self.split_column}
        self.taken = sorted(number for number in taken if number is not None)
        self.names = [name for number, name in enumerate(header) if number not in taken]
        if not self.names:
            fault = "a column labels, or a column for each class: it has no class names"
            raise UserError(f"{path} needs {fault}")
        self.lines = array("q")
        self.images: list[str] = []
        self.splits: list[str] = []
        keys = [column_key(name) for name in self.names]
        self.lists: dict[int, list[str]] = {c: [] for c, key in enumerate(keys) if key in LABEL_KEYS}
        self.flags = TargetsBuilder(len(self.names))
        self.other_cells: dict[int, tuple[int, str]] = {}

    def add(self, row: TableRow) -> None:
        """Add a row; UserError if it is too long or too short, or has a cell in a column without a name."""
        line, cells = row
        cells = as_long_as(self.header, cells, f"{self.path}, line {line}")
        for number in self.unnamed:
            if cell := cells[number].strip():
                where = f"column {number + 1} has no name, but line {line} has {cell!r:.50} in it"
                way_out = "name it or delete it (pandas: to_csv(..., index=False))"
                raise UserError(f"{self.path}: {where}: {way_out}")
        self.lines.append(line)
        self.images.append(cells[self.image_column].strip())
        if self.split_column is not None:
            self.splits.append(cells[self.split_column].strip())
        for number in reversed(self.taken):
            del cells[number]
        for c, texts in self.lists.items():
            texts.append(cells[c].strip())
        try:
            flags = bytes(map(CELLS.__getitem__, cells))
        except KeyError:
            flags = self.read_flags(cells, line)
        self.flags.add_row(flags)

    def read_flags(self, cells: list[str], line: int) -> bytes:
        """Return the targets of a row with blanks in its cells, or with cells that are not flags."""
        stripped = [cell.strip() for cell in cells]
        for c, cell in enumerate(stripped):
            if cell not in CELLS:
                self.other_cells.setdefault(c, (line, cell))
        return bytes([CELLS.get(cell, UNKNOWN_BYTE) for cell in stripped])

    def split_words(self) -> list[str] | None:
        """Return the splits of the rows, None without a column split; UserError for other words."""
        if self.split_column is None:
            return None
        for line, cell in zip(self.lines, self.splits):
            if cell.casefold() not in SPLIT_WORDS:
                name = self.header[self.split_column]
                raise UserError(f"{self.path}, line {line}: {name} is {cell!r:.50}, not train, val or test")
        return [SPLIT_WORDS[cell.casefold()] for cell in self.splits]

    def label_column(self) -> int | None:
        """Return the column of label lists, None if the table has a column per class.

        It is the column `labels`, else the first with another name of LABEL_KEYS if its cells are not 1, 0 or
        empty: a class may have such a name, too.
        """
        for key in LABEL_KEYS:
            for c in self.lists:
                is_list = key == LABEL_KEYS[0] or c in self.other_cells
                if column_key(self.names[c]) == key and is_list:
                    return c
        return None

    def refuse_more(self, labels: int) -> None:
        """Raise UserError if there are columns beside the one of label lists, other than empty ones."""
        filled = {*np.flatnonzero(self.flags.build().num_known()), *self.other_cells}
        more = sorted(filled - {labels})
        beside = f"beside {self.names[labels]!r:.50}"
        for c in more:
            if self.is_like_split(c):
                fault = f"the column {self.names[c]!r:.50} is too much {beside}"
                raise UserError(f"{self.path}: {fault}: {NAME_IT_SPLIT}")
        if more:
            names = ", ".join(repr(self.names[c]) for c in more)
            raise UserError(f"{self.path} has other columns {beside}: delete {names:.200}")

    def is_like_split(self, c: int) -> bool:
        """Return whether a column has a word of a split, or a name like that."""
        _, cell = self.other_cells.get(c, (0, ""))
        return cell.casefold() in SPLIT_WORDS or closest(column_key(self.names[c]), SPLIT_KEYS) is not None

    def class_targets(self, known: KnownClasses | None) -> tuple[list[str], Targets]:
        """Return the class names and the targets of a table with a column per class.

        known: the classes that there may be; what has no column is unknown. Raises UserError for other
        classes or cells.
        """
        self.check_flags()
        classes = check_names(self.names, self.path)
        check_looks(classes, self.path)
        targets = self.flags.build()
        if known is None:
            return classes, targets
        numbers = {name: c for c, name in enumerate(known.names)}
        for name in classes:
            if name not in numbers:
                raise known.unknown(name, str(self.path))
        return known.names, move_classes(targets, [numbers[name] for name in classes], len(numbers))

    def check_flags(self) -> None:
        """Raise UserError if a cell of a column is not in CELLS."""
        for c in sorted(self.other_cells):
            line, cell = self.other_cells[c]
            way_out = "if it is not a class, delete it"
            if self.is_like_split(c):
                way_out = NAME_IT_SPLIT
            elif len(self.names) == 1 or closest(column_key(self.names[c]), LABEL_KEYS):
                way_out = "if it holds lists of labels, name it labels"
            fault = f"{self.names[c]} is {cell!r:.50}, but must be 1, 0 or empty"
            raise UserError(f"{self.path}, line {line}: {fault}: {way_out}")


def move_classes(targets: Targets, numbers: list[int], num_classes: int) -> Targets:
    """Return targets among num_classes classes, where class c becomes numbers[c]; the others are unknown."""
    builder = TargetsBuilder(num_classes)
    for index in range(len(targets)):
        row = np.full(num_classes, IGNORED, np.int8)
        row[numbers] = targets.row(index)
        builder.add_row(row.tobytes())
    return builder.build()


def as_long_as(header: list[str], cells: list[str], where: str) -> list[str]:
    """Return the cells of a row, as many as the header has; UserError if there are more or fewer.

    Empty cells at the end of the row may be too many, and cells of columns without a name may be missing.
    """
    num_cells = len(cells)
    while num_cells > len(header) and not cells[num_cells - 1].strip():
        num_cells -= 1
    num_needed = len(header)
    while num_needed > num_cells and is_unnamed(header[num_needed - 1]):
        num_needed -= 1
    if num_cells != num_needed:
        counts = f"{num_cells} cells, but the header has {len(header)}"
        way_out = 'put quotes around a cell that holds the separator of the table, as in "dog;person"'
        raise UserError(f"{where}: {counts}: {way_out}")
    return cells[:num_cells] + [""] * (len(header) - num_cells)


def is_unnamed(name: str) -> bool:
    """Return whether a column has no name; pandas calls such a column Unnamed: 2."""
    return re.fullmatch(r"(Unnamed: \d+)?", look(name)) is not None


def column_key(name: str) -> str:
    """Return the name of a column without what people write differently: "Image Path" is imagepath."""
    return re.sub(r"[\s_:.-]", "", look(name)).casefold()


def header_error(path: Path, header: list[str]) -> UserError:
    """Return the error for a table without a column of image names; it names the one that may be meant."""
    form = "a header image,labels or image,CLASS,..."
    question = ""
    for name in header:
        key = column_key(name)
        if key not in (*LABEL_KEYS, *SPLIT_KEYS) and closest(key, IMAGE_KEYS):
            question = f": if {name!r:.50} holds the images, name it image"
    return UserError(f"{path} needs rows below {form}, not {header!s:.99}{question}")


def find_image_column(header: list[str], path: Path) -> int:
    """Return the number of the column of image names.

    It is the column `image`, else the first column if that has another name of IMAGE_KEYS, else the only one
    that has. Raises UserError if there is none, or more than one.
    """
    keys = [column_key(name) for name in header]
    numbers = [number for number, key in enumerate(keys) if key in IMAGE_KEYS]
    if IMAGE_KEYS[0] in keys:
        numbers = [number for number, key in enumerate(keys) if key == IMAGE_KEYS[0]]
    elif 0 in numbers:
        numbers = [0]
    if not numbers:
        raise header_error(path, [name for name in header if not is_unnamed(name)])
    if len(numbers) > 1:
        names = " and ".join(repr(header[number]) for number in numbers[:2])
        raise UserError(f"{path}: {names} could both be the column image: rename the other one")
    return numbers[0]


def find_split_column(header: list[str], path: Path) -> int | None:
    """Return the number of the column split, None if there is none; UserError if there are two."""
    found = [number for number, name in enumerate(header) if column_key(name) in SPLIT_KEYS]
    if len(found) > 1:
        names = f"{header[found[0]]!r} and {header[found[1]]!r}"
        raise UserError(f"{path} has two columns split, {names}: delete one")
    return found[0] if found else None
