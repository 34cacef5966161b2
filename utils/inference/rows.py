"""The rows of demo.py: what it has found of each photograph so far, in a file that grows beside the table.

The first line says what the rows depend on. Every other line is a photograph: its scores, or why it was
skipped, and what a page shows of it. A row is written as soon as its photograph is labelled, so a stop loses
none. At the end the tables and the page are made from the rows, in the order of the photographs, and the file
is removed.
"""

import base64
import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.inference.html_page import PagePhoto
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import reporting_write_errors, write_all
from utils.runtime.locks import holding_lock

START = b'{"rows of": "demo.py", '  # by which a file of rows is known
TOO_LONG_TO_PRINT = ("weights", "class names")  # of what rows depend on


class Row(NamedTuple):
    """A photograph: its scores (C,), or in words why it was skipped; on_page: what a page shows of it."""

    path: str
    scores: np.ndarray | None = None
    skipped: str | None = None
    on_page: PagePhoto | None = None


class RowsFile:
    """A file of rows that grows; see `open_rows`.

    path: of the file. starts: {photograph: where its row starts, in bytes}. skipped: {photograph: why}.
    Raises UserError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self.end = 0
        with reporting_write_errors(path):
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115  `open_rows` closes it

    def begin(self, made_with: dict[str, Any]) -> None:
        """Replace what is in the file by a first line that says what the rows depend on."""
        with reporting_write_errors(self.path):
            self.file.truncate(0)
        self.append(first_line(made_with))

    def go_on(self) -> None:
        """Find the rows that are in the file, and drop a torn one at its end."""
        with open(self.path, "rb") as file:
            self.end = len(file.readline())
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged row is labelled again
                    self.note(line_as_row(line), self.end)
                self.end += len(line)
        with reporting_write_errors(self.path):
            self.file.truncate(self.end)

    def add(self, row: Row) -> None:
        """Write a row to the end of the file."""
        start = self.end
        self.append(row_as_line(row))
        self.note(row, start)

    def append(self, line: bytes) -> None:
        """Write a line to the end of the file."""
        with reporting_write_errors(self.path):
            write_all(self.file, line)
        self.end += len(line)

    def note(self, row: Row, start: int) -> None:
        """Note where a row starts."""
        self.starts[row.path] = start
        if row.skipped is not None:
            self.skipped[row.path] = row.skipped

    def read(self, paths: Iterable[str]) -> Iterator[Row]:
        """Yield the row of each photograph."""
        with open(self.path, "rb") as file:
            for path in paths:
                file.seek(self.starts[path])
                yield line_as_row(file.readline())

    def scores(self, paths: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the scores (C,) of each photograph; none of them was skipped."""
        for row in self.read(paths):
            assert row.scores is not None
            yield row.scores

    def remove(self) -> None:
        """Close and remove the file: its rows are in the tables."""
        self.file.close()
        self.path.unlink()


def first_line(made_with: dict[str, Any]) -> bytes:
    """Return the first line of a file; made_with: what its rows depend on, by name."""
    return START + json.dumps(made_with).encode()[1:] + b"\n"


def row_as_line(row: Row) -> bytes:
    """Return a row as a line of JSON."""
    fields: dict[str, Any] = {"image": row.path}
    if row.skipped is not None:
        fields["skipped"] = row.skipped
    if row.scores is not None:
        fields["scores"] = row.scores.tolist()
    if row.on_page is not None:
        thumbnail = base64.b64encode(row.on_page.thumbnail).decode()
        fields["on_page"] = {**row.on_page._asdict(), "thumbnail": thumbnail}
    return json.dumps(fields).encode() + b"\n"


def line_as_row(line: bytes) -> Row:
    """Return the row that a line holds; ValueError, KeyError or TypeError if it is damaged."""
    fields = json.loads(line)
    if ("scores" in fields) == ("skipped" in fields):
        raise ValueError("a row has scores, or why there are none")
    scores = np.array(fields["scores"]) if "scores" in fields else None
    on_page = None
    if "on_page" in fields:
        page = fields["on_page"]
        on_page = PagePhoto(page["entry"], page["maps"], base64.b64decode(page["thumbnail"]))
    return Row(fields["image"], scores, fields.get("skipped"), on_page)


@contextlib.contextmanager
def open_rows(outputs: list[Path], made_with: dict[str, Any], resume: bool) -> Iterator[RowsFile]:
    """Open the file of rows of some outputs, which this process alone may write inside the block.

    At the end the file is closed, and removed if it holds no row. made_with: what the rows depend on, by
    name. resume: whether to go on with the rows that are there.
    Raises UserError if another process writes an output, if rows are there and `resume` is False, if they
    were made with something else, or if the file is not one of rows.
    """
    path = rows_path(outputs)
    with holding_locks(outputs) as locked:
        had_rows = holds_rows(path)
        if had_rows and not resume:
            way_out = "go on with --resume, or remove it to begin again"
            raise UserError(f"{path} holds the rows of a stopped demo.py: {way_out}")
        if had_rows:
            check_made_with(path, made_with)
        rows = RowsFile(path)
        try:
            if had_rows:
                rows.go_on()
            else:
                rows.begin(made_with)
            yield rows
        finally:
            rows.file.close()
            if not had_rows and not rows.starts:
                path.unlink(missing_ok=True)
        if locked and not path.exists():
            remove_leftovers(outputs)


def rows_path(outputs: list[Path]) -> Path:
    """Return the path of the file of rows of some outputs: beside the first of them."""
    first = Path(os.path.realpath(outputs[0]))
    return first.with_name(f"{first.name}.rows")


@contextlib.contextmanager
def holding_locks(outputs: list[Path]) -> Iterator[bool]:
    """Inside the block, no other demo.py writes the outputs; it gets False where locks do not work.

    Raises UserError if another one does.
    """
    with contextlib.ExitStack() as stack:
        held = []
        for output in map(os.path.realpath, outputs):
            in_use = f"another demo.py is writing {output}: wait until it ends, or choose another name"
            lock = Path(output).with_name(f".{os.path.basename(output)}.lock")
            with reporting_write_errors(Path(output)):
                lock.parent.mkdir(parents=True, exist_ok=True)
            held.append(stack.enter_context(holding_lock(lock, in_use)))
        yield all(held)


def remove_leftovers(outputs: list[Path]) -> None:
    """Remove the unfinished tables and pages of killed processes."""
    for output in map(os.path.realpath, outputs):
        name = glob.escape(os.path.basename(output))
        for part in Path(output).parent.glob(f".{name}.*.part*"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def holds_rows(path: Path) -> bool:
    """Return whether a file of rows holds any; UserError if it is another file."""
    if not path.exists():
        return False
    if path.is_file():
        with open(path, "rb") as file:
            first, second = file.readline(), file.readline()
        if first.startswith(START) or START.startswith(first):
            return second.endswith(b"\n")
    raise UserError(f"{path} exists and is not from demo.py: move it, or choose another name")


def check_made_with(path: Path, made_with: dict[str, Any]) -> None:
    """Raise UserError if the rows in a file were made with something else."""
    with (
        open(path, "rb") as file,
        reporting_errors(f"{path} is damaged: remove it and start without --resume"),
    ):
        earlier = json.loads(file.readline())
    for name, value in made_with.items():
        if earlier.get(name) == value:
            continue
        difference = f"{name} {earlier.get(name)}, not {value}"
        if name in TOO_LONG_TO_PRINT:
            difference = f"other {name}"
        way_out = "change that back, or remove it and start without --resume to begin again"
        raise UserError(f"{path} was begun with {difference}: {way_out}")
