"""Whether a command may write the files and folders that its options name, checked before anything slow."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from utils.runtime.errors import UserError


def check_folder(folder: Path, option: str) -> None:
    """Raise UserError, naming `option`, if a folder cannot be written to, or made where it is missing."""
    try:
        tempfile.TemporaryFile(dir=nearest_existing(folder)).close()
    except OSError as error:
        raise UserError(f"{option}: the folder {folder} cannot be written to ({error.strerror})") from None


def nearest_existing(folder: Path) -> Path:
    """Return a folder if it exists, else the nearest of its parents that does."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_file(path: Path | None, option: str, *endings: str) -> None:
    """Raise UserError if the file of an option cannot be written or has none of the endings.

    path: None, an option that was left out, passes.
    """
    if path is None:
        return
    if endings and path.suffix not in endings:
        raise UserError(f"{option} {path}: name a file that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file")
    check_folder(path.parent, option)


def check_replaceable(path: Path | None, option: str, is_own: Callable[[Path], bool], command: str) -> None:
    """Raise UserError if a file exists that `command` did not write: an output replaces only its own kind.

    path: None, an option that was left out, passes; so does an empty file. is_own: whether a file is of the
    kind that the command writes; an exception in it means that it is not.
    """
    if path is None or not path.exists():
        return
    own = False
    if path.is_file():
        with contextlib.suppress(Exception):  # its type depends on the content of the file
            own = path.stat().st_size == 0 or is_own(path)
    if not own:
        raise UserError(f"{option} {path} exists and is not from {command}: move it, or choose another name")
