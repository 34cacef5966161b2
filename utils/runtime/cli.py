"""What every command needs: checked arguments, and errors of the user reported in one line."""

import argparse
import contextlib
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from utils.runtime.workers import kill_workers, start_resource_tracker

# The first words of "can't allocate memory" and "couldn't allocate memory" differ.
OUT_OF_MEMORY = "t allocate memory|out of memory|DataLoader worker.*(shared memory|Killed|exited)"
OLDEST_TORCH = (2, 5)  # the first with torch.serialization.safe_globals, which reading a checkpoint needs
CLOSED_PIPE_STATUS = 128 + 13  # as a shell reports a command that SIGPIPE (13) ended
MAX_PIXELS = 100_000_000  # of an image, unless the caller sets another limit


class UserError(Exception):
    """A mistake the user can fix; its message is one line that names the bad value or file and a way out."""


class Interrupted(SystemExit):
    """A signal asked the command to stop; a SystemExit passes every `except Exception` on its way out."""


@contextlib.contextmanager
def reporting_value_errors(what: object) -> Iterator[None]:
    """Turn a ValueError inside the block into a UserError that starts with `what`."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


@contextlib.contextmanager
def reporting_errors(fault: str) -> Iterator[None]:
    """Turn an exception into a UserError with `fault`, for blocks that read data which may be malformed.

    UserErrors pass unchanged, and so do errors of the file system and of memory.
    """
    try:
        yield
    except Exception as error:  # the type depends on the library and the damage
        is_file_system = isinstance(error, OSError) and error.filename
        if isinstance(error, UserError) or is_file_system or out_of_memory_message(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^\w+, \S+:\d+, ", "", reason)  # a place in C++ code
        raise UserError(f"{fault} ({type(error).__name__}: {reason:.200})") from None


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default to every help text that does not explain it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = not isinstance(action.default, bool | None) and action.dest != "help"
        if has_default and "[default" not in text:
            text += " [default: %(default)s]"
        return text


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def given_path(text: str) -> Path:
    """Parse a path that is not empty (an unset shell variable gives an empty one); an argparse type."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def number(kind: type, low: float, low_allowed: bool = True, high: float = 2**63) -> Callable[[str], float]:
    """Return an argparse type for an int or float (`kind`) with low ≤ x < high, or low < x < high."""
    word = {int: "whole number", float: "number"}[kind]
    bound = f"of at least {low}" if low_allowed else f"above {low}"
    bound += f" and below {high}" if high < 2**63 else ""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low < value < high or (low_allowed and value == low):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {word} {bound}")

    return parse


def default_workers() -> int:
    """Return one worker per CPU core available to this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def add_max_pixels(group: argparse._ActionsContainer) -> None:
    """Add --max_pixels, which keeps a small file from decoding to an image that fills the memory."""
    pixels_help = "refuse larger images, which take 3 to 20 bytes of memory per pixel"
    group.add_argument("--max_pixels", type=number(int, 1), default=MAX_PIXELS, help=pixels_help)


def ignore_decoder_warnings() -> None:
    """Keep Pillow from warning of damage that it can repair: a command's stderr is for errors.

    This is for commands and their workers; the library leaves the warnings to the program that imports it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def run_script(main: Callable[[], None]) -> None:
    """Run a command; on a user's mistake, print one line on stderr and exit with status 2.

    Under torchrun only the first process prints to stdout, and the first of each machine reports an error;
    the others wait for torchrun to end them.
    """
    prepare_output()
    start_resource_tracker()
    ignore_decoder_warnings()
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
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                wait_for_torchrun()  # this may be the consequence of an error in another process
            raise
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            wait_for_torchrun()  # the first process of this machine may report the same error
        print(f"{os.path.basename(sys.argv[0])}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


def prepare_output() -> None:
    """Let the first process alone print to stdout, line by line, and escape what a terminal cannot encode."""
    if int(os.environ.get("RANK", 0)) > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def wait_for_torchrun() -> None:
    """Wait for 5 s, in which torchrun ends this process if another one has failed."""
    time.sleep(5)


def user_message(error: Exception) -> str | None:
    """Return the message for an error that the user can fix, None for an error of the program."""
    if isinstance(error, UserError):
        # A DataLoader worker's error arrives as a traceback that ends with the message.
        return str(error).rpartition(f"{UserError.__module__}.UserError: ")[2]
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return out_of_memory_message(error)


def check_torch() -> None:
    """Raise UserError if PyTorch has been imported and is too old; this function imports nothing."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    version = str(torch.__version__)
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        way_out = "pip install -r requirements.txt"
        raise UserError(f"PyTorch {version} is too old: install {oldest} or later, for example by {way_out}")


def out_of_memory_message(error: Exception) -> str | None:
    """Return the message for an error if it means that memory ran out, else None."""
    text = str(error).partition("\n")[0]
    if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, text):
        return None
    advice = "use a smaller --batch_size, --img_size or --max_pixels, or fewer --num_workers"
    if "shared memory" in text:
        advice = "give the container more shared memory, or use --num_workers 0"
    return f"memory ran out ({text.partition('. ')[0].removesuffix('.')}): {advice}"


def one_line(message: str) -> str:
    """Return a message as one printable line of at most 2,000 characters."""
    message = " ".join(message.splitlines())
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    return message if len(message) <= 2000 else f"{message[:1000]} … {message[-500:]}"
