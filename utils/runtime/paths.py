"""The many paths of one file: links lead to it, and its accents are spelled in two ways."""

import os
import stat
import unicodedata
from pathlib import Path

FileKey = tuple[int, int] | str  # is equal for all paths of one file, also for those that lead through links


def file_key(path: str | Path) -> FileKey:
    """Return the FileKey of a file or folder; OSError if there is none."""
    return key_of_status(path, os.stat(path))


def find_file(path: Path) -> FileKey | None:
    """Return the FileKey of a file, None if it is missing, a folder or a device."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return key_of_status(path, status) if stat.S_ISREG(status.st_mode) else None


def key_of_status(path: str | Path, status: os.stat_result) -> FileKey:
    """Return the FileKey of a path with this status."""
    if status.st_ino == 0:  # the file system has no numbers for files
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def existing_spelling(path: str) -> str:
    """Return a path with its accents spelled as on the disk, or unchanged if it exists in no spelling.

    An é is one character or two, an e and an accent: tables and disks of different systems differ in this.
    """
    if path.isascii() or os.path.exists(path):
        return path
    found = ""
    for part in Path(path).parts:
        spellings = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        paths = [os.path.join(found, spelling) for spelling in spellings]
        existing = [path for path in paths if os.path.exists(path)]
        if not existing:
            return path
        found = existing[0]
    return found
