"""Tables of labels, as spreadsheets and pandas write them. It needs no torch.

A table has a column of image names, and either a column of label lists or a column per class. A column split
is optional.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

from utils.data.classes import check_looks, check_names
from utils.data.label_files import UNKNOWN
from utils.data.lookalikes import closest, compose, describe_unknown, look
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_fetched

CELLS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": UNKNOWN}  # pandas writes 1.0 if other cells are empty
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
SEPARATOR = ";"
OTHER_SEPARATORS = ",|\uff0c\u3001\uff1b"  # the last three are full-width
JOINING_MARKS = "/+&:"  # a name may hold them: "AC/DC"
PYTHON_LIST = re.compile(r"\[.*\]|\{.*\}|\(\s*['\"].*\)", re.DOTALL)


class Row(NamedTuple):
    """A row of a table, and the line of the file that it ends on."""

    line: int
    cells: list[str]


class Column(NamedTuple):
    """A column of a table: its name, and the cells (N) of its rows."""

    name: str
    cells: list[str]


class LabelTable(NamedTuple):
    """What a table says about its N rows.

    path: of the table. lines (N): where each row ends. images (N): names of files. splits (N): "train", "val"
    or "test", or None without a column split. classes (C). targets (N, C): 1, 0 or UNKNOWN. has_lists:
    whether the labels are in one column, so that two rows of an image add up.
    """

    path: Path
    lines: list[int]
    images: list[str]
    splits: list[str] | None
    classes: list[str]
    targets: list[list[int]]
    has_lists: bool


def read_label_table(path: Path, separator: str | None, classes: list[str] | None) -> LabelTable:
    """Read a table of labels.

    separator: the text between the labels of a cell; None is ";", and cells that look like lists of another
    kind are then refused. classes: the classes that the table may name; None takes those that it names.
    Raises UserError if the table is malformed.
    """
    lines, columns = read_columns(path)
    images = take_image_column(columns, path)
    splits = take_split_column(columns, lines, path)
    labels = take_label_column(columns, path)
    if labels is None:
        classes, targets = read_class_columns(columns, lines, classes, path)
    else:
        refuse_more_columns(columns, labels, path)
        classes, targets = read_label_lists(labels, lines, separator, classes, path)
    return LabelTable(path, lines, images.cells, splits, classes, targets, has_lists=labels is not None)


def read_columns(path: Path) -> tuple[list[int], list[Column]]:
    """Return the line of each row of a table, and the columns that have a name.

    Raises UserError if the table has no rows, rows of different lengths, or cells in a column without a name.
    """
    check_fetched(path)
    fault = f"{path} is not a table in UTF-8"
    with open(path, encoding="utf-8-sig", newline="") as file, reporting_errors(fault):
        rows = read_rows(list(file))
    header = rows[0].cells if rows else []
    if len(header) < 2:
        raise header_error(path, header)
    if len(rows) < 2:
        raise UserError(f"{path} has no rows below its header {header!s:.99}: add a row per image")
    columns = [Column(name, []) for name in header]
    for line, cells in rows[1:]:
        for column, cell in zip(columns, as_long_as(header, cells, f"{path}, line {line}")):
            column.cells.append(cell)
    lines = [row.line for row in rows[1:]]
    return lines, named_columns(columns, lines, path)


def read_rows(text: list[str]) -> list[Row]:
    """Split the lines of a table into rows, without empty ones; the first row is the header."""
    # Spreadsheets separate cells by semicolons in countries that write decimals with a comma.
    first_line = next((line for line in text if line.strip()), "")
    unquoted = re.sub('"[^"]*("|$)', "", first_line)
    delimiter = max(",;\t", key=unquoted.count)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    rows = []
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            rows.append(Row(reader.line_num, stripped))
    return rows


def as_long_as(header: list[str], cells: list[str], where: str) -> list[str]:
    """Return the cells of a row, as many as the header has; UserError if there are more or fewer.

    Empty cells at the end of the row may be too many, and cells of columns without a name may be missing.
    """
    num_cells = len(cells)
    while num_cells > len(header) and not cells[num_cells - 1]:
        num_cells -= 1
    num_needed = len(header)
    while num_needed > num_cells and is_unnamed(header[num_needed - 1]):
        num_needed -= 1
    if num_cells != num_needed:
        counts = f"{num_cells} cells, but the header has {len(header)}"
        way_out = 'put quotes around a cell that holds the separator of the table, as in "dog;person"'
        raise UserError(f"{where}: {counts}: {way_out}")
    return cells[:num_cells] + [""] * (len(header) - num_cells)


def named_columns(columns: list[Column], lines: list[int], path: Path) -> list[Column]:
    """Return the columns that have a name; UserError if one without a name has cells that are not empty."""
    named = []
    for number, column in enumerate(columns, start=1):
        if not is_unnamed(column.name):
            named.append(column)
            continue
        for line, cell in zip(lines, column.cells):
            if cell:
                where = f"column {number} has no name, but line {line} has {cell!r:.50} in it"
                raise UserError(f"{path}: {where}: name it or delete it (pandas: to_csv(..., index=False))")
    return named


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


def take_image_column(columns: list[Column], path: Path) -> Column:
    """Take the column of image names out of a table and return it.

    It is the column `image`, else the first column if that has another name of IMAGE_KEYS, else the only one
    that has. Raises UserError if there is none, or more than one.
    """
    keys = [column_key(column.name) for column in columns]
    numbers = [number for number, key in enumerate(keys) if key in IMAGE_KEYS]
    if IMAGE_KEYS[0] in keys:
        numbers = [number for number, key in enumerate(keys) if key == IMAGE_KEYS[0]]
    elif 0 in numbers:
        numbers = [0]
    if not numbers:
        raise header_error(path, [column.name for column in columns])
    if len(numbers) > 1:
        names = " and ".join(repr(columns[number].name) for number in numbers[:2])
        raise UserError(f"{path}: {names} could both be the column image: rename the other one")
    return columns.pop(numbers[0])


def take_split_column(columns: list[Column], lines: list[int], path: Path) -> list[str] | None:
    """Take the column split out of a table and return its words, None if there is none.

    Raises UserError for words other than SPLIT_WORDS, and if there are two such columns.
    """
    found = [column for column in columns if column_key(column.name) in SPLIT_KEYS]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"{path} has two columns split, {found[0].name!r} and {found[1].name!r}: delete one")
    columns.remove(found[0])
    name, cells = found[0]
    for line, cell in zip(lines, cells):
        if cell.casefold() not in SPLIT_WORDS:
            raise UserError(f"{path}, line {line}: {name} is {cell!r:.50}, not train, val or test")
    return [SPLIT_WORDS[cell.casefold()] for cell in cells]


def take_label_column(columns: list[Column], path: Path) -> Column | None:
    """Take the column of label lists out of a table and return it, None if the table has a column per class.

    It is the column `labels`, else the first with another name of LABEL_KEYS if its cells are not 1, 0 or
    empty: a class may have such a name, too. Raises UserError if the table has neither kind of column.
    """
    if not columns:
        raise UserError(f"{path} needs a column labels, or a column for each class: it has no class names")
    for key in LABEL_KEYS:
        for column in columns:
            is_list = key == LABEL_KEYS[0] or not CELLS.keys() >= set(column.cells)
            if column_key(column.name) == key and is_list:
                columns.remove(column)
                return column
    return None


def refuse_more_columns(columns: list[Column], labels: Column, path: Path) -> None:
    """Raise UserError if there are columns beside the one of label lists, other than empty ones."""
    more = [column for column in columns if any(column.cells)]
    for column in more:
        if is_like_split(column):
            fault = f"the column {column.name!r:.50} is too much beside {labels.name!r:.50}"
            raise UserError(f"{path}: {fault}: {NAME_IT_SPLIT}")
    if more:
        names = ", ".join(repr(column.name) for column in more)
        raise UserError(f"{path} has other columns beside {labels.name!r:.50}: delete {names:.200}")


def is_like_split(column: Column) -> bool:
    """Return whether a column holds the words of a split, or has a name like that."""
    words = {cell.casefold() for cell in column.cells}
    return words <= SPLIT_WORDS.keys() or closest(column_key(column.name), SPLIT_KEYS) is not None


def read_class_columns(
    columns: list[Column], lines: list[int], known: list[str] | None, path: Path
) -> tuple[list[str], list[list[int]]]:
    """Return the class names and the targets (N, C) of a table with a column per class.

    known: the classes that there may be; what has no column is unknown. Raises UserError for other classes or
    cells.
    """
    for column in columns:
        check_class_cells(column, lines, path, is_only_column=len(columns) == 1)
    classes = check_names([column.name for column in columns], path)
    check_looks(classes, path)
    if known is None:
        known = classes
    cells_of = {}
    for name, column in zip(classes, columns):
        if name not in known:
            raise UserError(f"{path}: --classes_of has no class {describe_unknown(name, known)}")
        cells_of[name] = column.cells
    unknown = [""] * len(lines)
    rows = zip(*[cells_of.get(name, unknown) for name in known])
    return known, [[CELLS[cell] for cell in cells] for cells in rows]


def check_class_cells(column: Column, lines: list[int], path: Path, is_only_column: bool) -> None:
    """Raise UserError if a cell of the column of a class is not in CELLS."""
    for line, cell in zip(lines, column.cells):
        if cell not in CELLS:
            way_out = "if it is not a class, delete it"
            if is_like_split(column):
                way_out = NAME_IT_SPLIT
            elif is_only_column or closest(column_key(column.name), LABEL_KEYS):
                way_out = "if it holds lists of labels, name it labels"
            fault = f"{column.name} is {cell!r:.50}, but must be 1, 0 or empty"
            raise UserError(f"{path}, line {line}: {fault}: {way_out}")


def read_label_lists(
    column: Column, lines: list[int], separator: str | None, known: list[str] | None, path: Path
) -> tuple[list[str], list[list[int]]]:
    """Return the class names and the targets (N, C) of a table with a column of label lists.

    known: the classes that there may be; None takes those that are named, sorted. Raises UserError for other
    classes, and for cells that look like lists with another separator.
    """
    label_sets = []
    mark = SEPARATOR if separator is None else separator.strip() or separator  # labels are stripped, too
    with reporting_errors("--separator"):
        for line, cell in zip(lines, column.cells):
            check_list(cell, separator is not None, f"{path}, line {line}")
            labels = {compose(label.strip()) for label in cell.split(mark)}
            label_sets.append(labels - {""})
    if known is None:
        known = check_names(sorted(set().union(*label_sets)), path)
        check_looks(known, path)
        if separator is None:
            check_joined(known, path)
    allowed = set(known)
    for line, labels in zip(lines, label_sets):
        for name in sorted(labels - allowed):
            raise UserError(f"{path}, line {line}: --classes_of has no class {describe_unknown(name, known)}")
    return known, [[int(name in labels) for name in known] for labels in label_sets]


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
    for name in classes:
        for mark in JOINING_MARKS:
            parts = {part.strip() for part in name.split(mark)}
            if len(parts) > 1 and parts <= set(classes):
                raise another_separator(name, mark, str(path))


def another_separator(label: str, mark: str, where: str) -> UserError:
    """Return the error for a label that looks like a list with another separator."""
    way_out = f"if it is a list, add --separator '{mark}', if it is one name, --separator '{SEPARATOR}'"
    return UserError(f"{where}: the label {label!r:.60} contains {mark!r}: {way_out}")
