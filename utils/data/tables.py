"""Tables of labels, as spreadsheets and pandas write them. It needs no torch."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.data.classes import KnownClasses
from utils.data.label_lists import read_label_lists
from utils.data.labels import Targets
from utils.data.table_columns import Columns, TableRow
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_fetched
from utils.runtime.progress import delayed_bar


class LabelTable(NamedTuple):
    """What a table says about its N rows.

    path: of the table. lines (N,): where each row ends. images (N): names of files. splits (N): "train",
    "val" or "test", or None without a column split. classes (C). targets (N, C). has_lists: whether the
    labels are in one column, so that two rows of an image add up.
    """

    path: Path
    lines: Sequence[int]
    images: list[str]
    splits: list[str] | None
    classes: list[str]
    targets: Targets
    has_lists: bool


def read_label_table(path: Path, separator: str | None, known: KnownClasses | None) -> LabelTable:
    """Read a table of labels.

    separator: the text between the labels of a cell; None is ";", and cells that look like lists of another
    kind are then refused. known: the classes that the table may name; None takes those that it names.
    Raises UserError if the table is malformed.
    """
    check_fetched(path)
    rows = read_rows(path)
    _, header = next(rows, TableRow(0, []))
    columns = Columns(header, path)
    for row in delayed_bar(rows, path.name):
        columns.add(row)
    lines = columns.lines
    if not lines:
        raise UserError(f"{path} has no rows below its header {header!s:.99}: add a row per image")
    splits = columns.split_words()
    labels = columns.label_column()
    if labels is None:
        classes, targets = columns.class_targets(known)
    else:
        columns.refuse_more(labels)
        classes, targets = read_label_lists(columns.lists[labels], lines, separator, known, path)
    return LabelTable(path, lines, columns.images, splits, classes, targets, has_lists=labels is not None)


def read_rows(path: Path) -> Iterator[TableRow]:
    """Yield the rows of a table, without empty ones; the first row is the header."""
    fault = f"{path} is not a table in UTF-8"
    with open(path, encoding="utf-8-sig", newline="") as file, reporting_errors(fault):
        start = []
        for text in file:
            start.append(text)
            if text.strip():
                break
        # Spreadsheets separate cells by semicolons in countries that write decimals with a comma.
        unquoted = re.sub('"[^"]*("|$)', "", "".join(start))
        delimiter = max(",;\t", key=unquoted.count)
        reader = csv.reader(itertools.chain(start, file), delimiter=delimiter, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield TableRow(reader.line_num, cells)
