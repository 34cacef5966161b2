"""Errors of the user, each reported in one line."""

import contextlib
import re
from collections.abc import Iterator

# The first words of "can't allocate memory" and "couldn't allocate memory" differ.
OUT_OF_MEMORY = "t allocate memory|out of memory|DataLoader worker.*(shared memory|Killed|exited)"


class UserError(Exception):
    """A mistake the user can fix; its message is one line that names the bad value or file and a way out."""


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


def user_message(error: Exception) -> str | None:
    """Return the message for an error that the user can fix, None for an error of the program."""
    if isinstance(error, UserError):
        # A DataLoader worker's error arrives as a traceback that ends with the message.
        return str(error).rpartition(f"{UserError.__module__}.UserError: ")[2]
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return out_of_memory_message(error)


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
