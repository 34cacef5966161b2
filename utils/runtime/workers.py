"""Worker processes: they do not see the signals that end a command; the command ends its workers itself.

Terminals and schedulers send a signal to all processes of a command at once. How workers start depends on the
system: by fork, by spawn (macOS, Windows), or by forkserver (Linux since Python 3.14).
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker

from utils.runtime.processes import LOCAL_WORLD_SIZE
from utils.runtime.signals import SIGNALS


def default_workers() -> int:
    """Return one worker per CPU core available to this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // LOCAL_WORLD_SIZE))


@contextlib.contextmanager
def sheltering_children() -> Iterator[None]:
    """Keep SIGNALS from the processes that start inside the block; Windows needs ignore_signals as well.

    A child inherits the set of blocked signals from its parent, and keeps it to its end. This process
    receives the signals that arrive inside the block when the block ends.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_resource_tracker() -> None:
    """Start the process that removes the semaphores of other processes, if workers do not start by fork.

    Python starts it with the first semaphore, which may be that of a progress bar. A signal would end it
    then, and without it Python prints tracebacks at the end of the command.
    """
    if sys.platform != "win32" and multiprocessing.get_start_method() != "fork":
        with sheltering_children():
            resource_tracker.ensure_running()


def ignore_signals() -> None:
    """Make this process ignore SIGNALS."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    """Kill the DataLoader workers: they ignore SIGTERM, so Python would wait for them at exit forever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler reports their end as a failure
    for process in multiprocessing.active_children():
        process.kill()
