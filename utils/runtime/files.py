"""Whole files: read with errors that name the file, and written completely or not at all."""

import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from utils.runtime.errors import UserError, reporting_errors

LFS_START = b"version https://git-lfs.github.com/spec/"


class PartFile(io.FileIO):
    """A new file that is to replace `path`; if a write fails (a full disk), a UserError names `path`."""

    def __init__(self, part: Path, path: Path) -> None:
        super().__init__(part, "x")
        self.path = path

    def write(self, data: Any, /) -> int:
        with reporting_write_errors(self.path):
            return super().write(data)


@contextlib.contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only once it is complete; UserError if it cannot be written.

    Other errors inside the block pass unchanged. Threads, processes and machines may write the same path:
    each writes a part file of its own, and the last one to finish replaces the others' file.
    """
    path = Path(os.path.realpath(path))  # write through a link
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file: IO[Any] = io.BufferedWriter(PartFile(part, path))
    try:
        if mode == "w":
            # surrogateescape: file names may hold any bytes. newline: files are the same on Windows, where
            # val.py would not know its own file again by its first bytes.
            file = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="\n")
        with file:
            yield file
            file.flush()
            with reporting_write_errors(path):
                os.fsync(file.fileno())
        with reporting_write_errors(path):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a UserError that says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take a part of the data at a time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent)


def write_json_list(path: Path, entries: Iterable[Any]) -> None:
    """Write a JSON list with one entry per line; the entries may come one by one."""
    with atomic_write(path) as file:
        file.write("[\n")
        before = ""
        for entry in entries:
            file.write(before + json.dumps(entry))
            before = ",\n"
        file.write("\n]\n")


def check_fetched(path: str | Path) -> None:
    """Raise UserError if a file is a Git LFS pointer: a short text in place of a file not fetched yet."""
    with open(path, "rb") as file:
        if file.read(len(LFS_START)) == LFS_START:
            raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError if it is malformed."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file")
    check_fetched(path)
    with open(path, encoding="utf-8-sig") as file, reporting_errors(f"{path} is not valid JSON"):
        return json.load(file)


def nan_to_none(value: Any) -> Any:
    """Return nested dicts and lists with None for NaN and infinity, which JSON cannot hold."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)
