"""The number of files that a process may have open; DataLoader workers need several each."""

import contextlib
import os

from utils.runtime.errors import UserError

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

# In this process: both ends of the pipe that sends indices to a worker, and a pipe that shows when it ends.
FILES_PER_WORKER = 3
# In a worker: the batches on their way, which are in shared memory, and the image that it reads.
FILES_OF_BATCHES = 32


def check_open_files(num_workers: int) -> None:
    """Raise UserError if this process and `num_workers` DataLoader workers may not open the files they need.

    A worker that can open no more files loses its batch without a word, and this process would wait for it
    forever.
    """
    if num_workers == 0 or resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_open_files() + FILES_PER_WORKER * num_workers + FILES_OF_BATCHES
    if limit != resource.RLIM_INFINITY and needed > limit:
        fault = f"{num_workers} workers need up to {needed} open files, but `ulimit -n` allows {limit}"
        raise UserError(f"{fault}: raise it (`ulimit -n 4096`), or use fewer --num_workers, such as 0")


def num_open_files() -> int:
    """Return how many files this process has open; a forked worker starts with them, too."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 0
