"""Cells of a table that hold lists of labels, such as "dog;person". It needs no torch."""

import re
from array import array
from collections.abc import Iterable
from pathlib import Path

from utils.data.classes import KnownClasses, check_looks, check_names
from utils.data.labels import Listed, Targets, TargetsBuilder
from utils.data.lookalikes import compose
from utils.runtime.errors import UserError

SEPARATOR = ";"
OTHER_SEPARATORS = ",|\uff0c\u3001\uff1b"  # the last three are full-width
JOINING_MARKS = "/+&:"  # a name may hold them: "AC/DC"
PYTHON_LIST = re.compile(r"\[.*\]|\{.*\}|\(\s*['\"].*\)", re.DOTALL)


def read_label_lists(
    cells: list[str], lines: Iterable[int], separator: str | None, known: KnownClasses | None, path: Path
) -> tuple[list[str], Targets]:
    """Return the class names and the targets of a table with a column of label lists.

    separator: the text between labels, not empty, or None for ";". known: the classes that there may be; None
    takes those that are named, sorted. Raises UserError for other classes, and for cells that look like lists
    with another separator.
    """
    mark = SEPARATOR if separator is None else separator.strip() or separator  # labels are stripped, too
    numbers: dict[str, int] = {}  # of the names, in the order in which the table has them
    first_lines: dict[str, int] = {}
    rows = []
    for line, cell in zip(lines, cells):
        check_list(cell, separator is not None, f"{path}, line {line}")
        labels = sorted({compose(label.strip()) for label in cell.split(mark)} - {""})
        rows.append(array("i", [numbers.setdefault(name, len(numbers)) for name in labels]))
        for name in labels:
            first_lines.setdefault(name, line)
    if known is None:
        classes = check_names(sorted(numbers), path)
        check_looks(classes, path)
        if separator is None:
            check_joined(classes, path)
    else:
        classes = known.names
    index = {name: c for c, name in enumerate(classes)}
    for name, line in first_lines.items():
        if known is not None and name not in index:
            raise known.unknown(name, f"{path}, line {line}")
    indices = [index[name] for name in numbers]
    targets = TargetsBuilder(len(classes))
    for row in rows:
        targets.add(Listed([indices[number] for number in row], negatives=None))
    return classes, targets.build()


def check_list(cell: str, has_separator: bool, where: str) -> None:
    """Raise UserError if a cell is a list of Python, or, unless a separator is given, has one of its own."""
    if PYTHON_LIST.fullmatch(cell):
        quoted = re.findall(r"'([^']*)'|\"([^\"]*)\"", cell)
        names = ["".join(groups) for groups in quoted] or re.split(r"[,;\s]+", cell[1:-1].strip())
        plain = SEPARATOR.join(names) or "nothing"
        raise UserError(f"{where}: {cell!r:.60} is a list of Python: write {plain:.60}")
    if has_separator:
        return
    for label in cell.split(SEPARATOR):
        for mark in OTHER_SEPARATORS:
            if mark in label:
                raise another_separator(label.strip(), mark, where)


def check_joined(classes: list[str], path: Path) -> None:
    """Raise UserError if a class looks like a list of other classes, joined by a mark that names may hold."""
    names = set(classes)
    for name in classes:
        for mark in JOINING_MARKS:
            parts = {part.strip() for part in name.split(mark)}
            if len(parts) > 1 and parts <= names:
                raise another_separator(name, mark, str(path))


def another_separator(label: str, mark: str, where: str) -> UserError:
    """Return the error for a label that looks like a list with another separator."""
    way_out = f"if it is a list, add --separator '{mark}', if it is one name, --separator '{SEPARATOR}'"
    return UserError(f"{where}: the label {label!r:.60} contains {mark!r}: {way_out}")
