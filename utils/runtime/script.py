"""Running a command: its output, its exit status, and its errors in one line."""

import atexit
import gc
import io
import os
import sys
import time
import warnings
from collections.abc import Callable

from utils.runtime.errors import one_line, user_message
from utils.runtime.processes import LOCAL_RANK, RANK, WORLD_SIZE
from utils.runtime.signals import raising_interrupted
from utils.runtime.versions import check_torch
from utils.runtime.workers import kill_workers, start_resource_tracker

CLOSED_PIPE_STATUS = 128 + 13  # as a shell reports a command that SIGPIPE (13) ended


def run_script(main: Callable[[], None]) -> None:
    """Run a command; on a user's mistake, print one line on stderr and exit with status 2.

    Under torchrun only the first process prints to stdout, and the first of each machine reports an error;
    the others wait for torchrun to end them.
    """
    with raising_interrupted():
        prepare_output()
        start_resource_tracker()
        ignore_decoder_warnings()
        # Else Python searches all objects for cycles when it ends, though the system frees them anyway.
        atexit.register(gc.freeze)
        run(main)


def run(main: Callable[[], None]) -> None:
    """Run a command in a process that is prepared for it, see `run_script`."""
    try:
        try:
            check_torch()
            main()
        finally:
            kill_workers()
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE_STATUS)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = user_message(error)
        if message is None:
            if WORLD_SIZE > 1:
                wait_for_torchrun()  # this may be the consequence of an error in another process
            raise
        if LOCAL_RANK > 0:
            wait_for_torchrun()  # the first process of this machine may report the same error
        print(f"{os.path.basename(sys.argv[0])}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


def prepare_output() -> None:
    """Let the first process alone print to stdout, line by line, and escape what a terminal cannot encode."""
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def wait_for_torchrun() -> None:
    """Wait for 15 s, in which torchrun ends this process if another one has failed."""
    time.sleep(15)


def ignore_decoder_warnings() -> None:
    """Keep Pillow from warning of damage that it can repair: a command's stderr is for errors.

    This is for commands and their workers; the library leaves the warnings to the program that imports it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
