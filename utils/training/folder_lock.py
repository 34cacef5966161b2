"""A lock on the folder of a run, so that two runs never write into one folder."""

import contextlib
import os
import socket
from pathlib import Path

from utils.runtime.errors import UserError
from utils.runtime.locks import release, take_lock


class FolderLock:
    """The lock of this process on a folder; the system frees it when the process ends, however it ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / ".lock"
        self.file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self.file is not None

    def acquire(self) -> None:
        """Take the lock; UserError if another run has it. Where locks do not work, say so and go on."""
        try:
            self.file = take_lock(self.path, wait=False)
        except BlockingIOError:
            in_use = f"{self.folder} is in use by another run ({read_holder(self.path)})"
            raise UserError(f"{in_use}: wait until it ends, or name another --output_dir") from None
        except OSError as error:
            print(f"{self.folder} cannot be locked ({error.strerror}): start no second run in it")
        else:
            write_holder(self.file)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self.file is not None:
            release(self.file, self.path)
            self.file = None


def write_holder(file: int) -> None:
    """Write into a locked file which process has the lock, for the message of another run."""
    with contextlib.suppress(OSError):  # the disk may be full
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def read_holder(path: Path) -> str:
    """Return what a locked file says about the process that has the lock."""
    try:
        return path.read_text(errors="replace") or "which has just begun"
    except OSError:  # it ends just now
        return "which ends just now"
