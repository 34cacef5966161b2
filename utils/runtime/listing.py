"""Which files exist, where many are asked for."""

import os
from collections import Counter

ASKED_FOR = 100  # files of a folder that are asked for one by one


class KnownFiles:
    """Tells which files exist: `path in known_files`, for paths as bytes.

    It lists a folder when it has been asked for many of its files: to ask the system for each of a million
    files takes far longer, above all on a file server.
    """

    def __init__(self) -> None:
        self.num_asked: Counter[bytes] = Counter()
        self.names: dict[bytes, set[bytes]] = {}

    def __contains__(self, path: bytes) -> bool:
        folder, slash, name = path.rpartition(b"/")
        folder += slash
        if folder not in self.names:
            self.num_asked[folder] += 1
            if self.num_asked[folder] <= ASKED_FOR:
                return os.path.isfile(path)
            self.names[folder] = files_in(folder or b".")
        # Some systems take other spellings of a name for it, such as capital letters.
        return name in self.names[folder] or os.path.isfile(path)


def files_in(folder: bytes) -> set[bytes]:
    """Return the names of the files in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
