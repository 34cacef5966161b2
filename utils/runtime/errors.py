"""Errors of the user, each reported in one line."""

import contextlib
import errno
import re
from collections.abc import Iterator

# In the first line. The first words of "can't allocate memory" and "couldn't allocate memory" differ.
OUT_OF_MEMORY = r"\A.*(t allocate memory|out of memory|DataLoader worker.*(shared memory|Killed|exited))"
OUT_OF_FILES = "Too many open files|received 0 items of ancdata"  # the latter from multiprocessing


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

    UserErrors pass unchanged, and so do errors of the file system and of a shortage.
    """
    try:
        yield
    except Exception as error:  # the type depends on the library and the damage
        is_file_system = isinstance(error, OSError) and error.filename
        if isinstance(error, UserError) or is_file_system or shortage_message(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^\w+, \S+:\d+, ", "", reason)  # a place in C++ code
        raise UserError(f"{fault} ({type(error).__name__}: {reason:.200})") from None


@contextlib.contextmanager
def as_user_errors() -> Iterator[None]:
    """Turn each error inside the block that the user can fix into a UserError; for code that workers run.

    An error leaves a DataLoader worker as its type and a text. In the text of a UserError, user_message finds
    the message; an OSError has lost its file name.
    """
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if isinstance(error, UserError) or message is None:
            raise
        raise UserError(message) from None


def user_message(error: Exception) -> str | None:
    """Return the message for an error that the user can fix, None for an error of the program."""
    if isinstance(error, UserError):
        # A DataLoader worker's error arrives as a traceback that ends with the message.
        return str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].removesuffix("\n")
    message = shortage_message(error)
    if message is None and isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return message


def shortage_message(error: Exception) -> str | None:
    """Return the message for an error if it means that memory or open files ran out, else None."""
    return out_of_files_message(error) or out_of_memory_message(error)


def out_of_files_message(error: Exception) -> str | None:
    """Return the message for an error if it means that no more files may be open, else None."""
    if not is_about(error, {errno.EMFILE, errno.ENFILE}, OUT_OF_FILES):
        return None
    return "too many open files: raise their limit, which `ulimit -n` shows, or use fewer --num_workers"


def out_of_memory_message(error: Exception) -> str | None:
    """Return the message for an error if it means that memory ran out, else None."""
    text = str(error).partition("\n")[0]
    if not isinstance(error, MemoryError) and not is_about(error, {errno.ENOMEM}, OUT_OF_MEMORY):
        return None
    advice = "use a smaller --batch_size, --img_size or --max_pixels, or fewer --num_workers"
    if "shared memory" in text:
        advice = "give the container more shared memory, or use --num_workers 0"
    return f"memory ran out ({text.partition('. ')[0].removesuffix('.')}): {advice}"


def is_about(error: Exception, numbers: set[int], pattern: str) -> bool:
    """Return whether a system error has one of these numbers, or the text of another error matches."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None:  # the text may hold a file name with the words of the pattern
        return number in numbers
    return re.search(pattern, str(error)) is not None


def one_line(message: str) -> str:
    """Return a message as one printable line of at most 2,000 characters."""
    message = " ".join(message.splitlines())
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    return message if len(message) <= 2000 else f"{message[:1000]} … {message[-500:]}"
