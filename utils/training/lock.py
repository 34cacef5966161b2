"""A lock on the folder of a run, so that two runs never write into one folder."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from utils.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """The lock of this process on a folder; the system frees it when the process ends, however it ends.

    It is a POSIX record lock, which a forked process does not inherit: the data loaders of a killed run end
    some seconds after it, and they do not keep its folder locked.
    """

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
        while not self.held:
            try:
                file = open_and_lock(self.path)
            except BlockingIOError:
                in_use = f"{self.folder} is in use by another run ({read_holder(self.path)})"
                raise UserError(f"{in_use}: wait until it ends, or name another --output_dir") from None
            except OSError as error:
                print(f"{self.folder} cannot be locked ({error.strerror}): start no second run in it")
                return
            if is_open_at(file, self.path):
                self.file = file
                write_holder(file)
            else:  # another run had it, and removed the file when it ended just now
                os.close(file)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.file)
            self.file = None


def open_and_lock(path: Path) -> int:
    """Lock a file and return its descriptor.

    Raises BlockingIOError if another process has the lock, OSError if locks do not work here.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no such locks")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:  # some systems raise this instead
        os.close(file)
        raise BlockingIOError from None
    except BlockingIOError:
        os.close(file)
        raise
    except OSError:
        os.close(file)
        path.unlink(missing_ok=True)
        raise
    return file


def is_open_at(file: int, path: Path) -> bool:
    """Return whether a descriptor still refers to the file at this path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


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
