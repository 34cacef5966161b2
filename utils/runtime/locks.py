"""Locks between processes, also of several machines; the system frees a lock when its process ends.

They are POSIX record locks, which a forked process does not inherit: the data loaders of a killed command end
some seconds after it, and they do not keep its lock.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from utils.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def waiting_for_lock(path: Path) -> Iterator[None]:
    """Inside the block, this process has the lock on a file; where locks do not work, it goes on without.

    The file is made, in a folder that exists, and removed.
    """
    file = None
    with contextlib.suppress(OSError):
        file = take_lock(path, wait=True)
    try:
        yield
    finally:
        if file is not None:
            release(file, path)


@contextlib.contextmanager
def holding_lock(path: Path, in_use: str) -> Iterator[bool]:
    """Inside the block, this process has the lock on a file; UserError with `in_use` if another one has it.

    The file is made, in a folder that exists, and removed. Where locks do not work, the block gets False.
    """
    file = None
    try:
        file = take_lock(path, wait=False)
    except BlockingIOError:
        raise UserError(in_use) from None
    except OSError:  # locks do not work here
        pass
    try:
        yield file is not None
    finally:
        if file is not None:
            release(file, path)


def take_lock(path: Path, wait: bool) -> int:
    """Take the lock on a file, which is made if it is missing; return its descriptor, for `release`.

    wait: whether to wait while another process has the lock.
    Raises BlockingIOError if another process has it and `wait` is false, OSError if locks do not work here.
    """
    while True:
        file = open_and_lock(path, wait)
        if is_open_at(file, path):
            return file
        os.close(file)  # the process that had the lock removed the file when it was done


def open_and_lock(path: Path, wait: bool) -> int:
    """Open and lock a file, which may have been removed since it was opened; see `take_lock`."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no such locks")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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


def release(file: int, path: Path) -> None:
    """Give a lock back, and remove its file."""
    path.unlink(missing_ok=True)
    os.close(file)
