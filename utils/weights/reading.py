"""Read a file of weights without running code in it: one that torch.save wrote, or one of safetensors.

A file of torch.save holds a pickle, and the numbers of the tensors beside it. A pickle is a program: it can
name any function of any installed module and have it called, even os.system. torch.load with
weights_only=True runs only the functions on a list: PyTorch's own, which put tensors together, and those in
SAFE.

SAFE lists what else is often stored beside weights: the options of argparse, the version of torch, and NumPy
numbers, such as the best mAP. NumPy's own functions are not safe to call. They believe what the pickle gives
them, and made-up arguments let them use memory that is not theirs. So where a pickle asks for numpy.dtype, it
gets a NumpyType, which only stores two words, and where it asks for NumPy's scalar(), it gets python_number,
which accepts the numbers in NUMBER_CODES and returns a number of Python.
"""

import argparse
import contextlib
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.torch_version import TorchVersion

from utils.runtime.archive import ENTRY_START, ArchiveError, check_archive
from utils.runtime.errors import UserError, out_of_memory_message, reporting_errors
from utils.runtime.files import check_fetched

# How a file of torch before 1.6 starts after its first two bytes, which are the version of the pickle.
OLD_START = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
WEB_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head")
NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
BYTE_ORDERS = ("", "<", ">", "|", "=")
SETTINGS_LOCK = threading.Lock()


class NumpyType:
    """Stands for numpy.dtype in a pickle: a code such as "f8", then a state that holds the byte order."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.order: object = ""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = state[1]


def python_number(kind: object, data: bytes) -> float | int:
    """Return the number that a NumPy scalar in a pickle holds; TypeError if it is no number."""
    if not isinstance(kind, NumpyType) or kind.code not in NUMBER_CODES or kind.order not in BYTE_ORDERS:
        raise TypeError("not a number")
    number: float | int = np.frombuffer(data, f"{kind.order}{kind.code}", count=1).item()
    return number


def known_as(function: Any, full_name: str) -> Any:
    """Give a function or class the full name by which a pickle asks for it, and return it.

    A pair of the two in SAFE would do the same, but torch 2.5 does not take one.
    """
    module, _, name = full_name.rpartition(".")
    function.__module__ = module
    function.__name__ = name
    function.__qualname__ = name
    return function


SAFE: list[Any] = [
    known_as(functools.partial(python_number), "numpy.core.multiarray.scalar"),  # NumPy 1
    known_as(functools.partial(python_number), "numpy._core.multiarray.scalar"),  # NumPy 2
    known_as(NumpyType, "numpy.dtype"),
    TorchVersion,
    argparse.Namespace,
]


def read_file(path: Path) -> Any:
    """Return the content of a file that torch.save or safetensors wrote: CPU tensors, and plain values.

    Raises UserError if the file is missing or damaged, or holds anything else. Files of torch before 1.6 and
    of safetensors hold no checksums, so a wrong number in them is not noticed.
    """
    if not path.is_file():
        problem = "not a file: name best.pth in it" if path.exists() else "no such file"
        raise UserError(f"{path}: {problem}")
    try:
        check_fetched(path)
        with open(path, "rb") as file:
            return read_open_file(file, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def read_open_file(file: BinaryIO, name: str) -> Any:
    """Return the content of an open file as read_file does; errors call it `name`."""
    file.seek(0)
    # The first bytes decide. torch.load decides by the name too, and tries formats one after another.
    start = file.read(500)
    if start.startswith(ENTRY_START):
        return read_archive(file, name)
    if start[2:].startswith(OLD_START):
        return read_old_file(file, name)
    if start[8:9] == b"{":  # after the length of the header, which is JSON
        return read_safetensors(file, name)
    if is_web_page(start):
        raise UserError(f"{name} is a web page, not a checkpoint: download it again in a browser")
    raise damaged(name, "it does not start as such a file")


def is_web_page(start: bytes) -> bool:
    """Return whether a file with these first bytes is a web page."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB_PAGE_STARTS)


def damaged(name: str, reason: str) -> UserError:
    """Return the error for a file whose bytes are not those that torch.save writes."""
    return UserError(f"{name} is damaged or not from torch.save ({reason}): copy or download it again")


def read_archive(file: BinaryIO, name: str) -> Any:
    """Return the content of an archive, the format of torch.save since torch 1.6."""
    try:
        check_archive(file)
    except ArchiveError as error:
        raise damaged(name, str(error)) from error
    return unpickle(file, name)


def read_old_file(file: BinaryIO, name: str) -> Any:
    """Return the content of a file of torch before 1.6: pickles, then the numbers of the tensors."""
    content = unpickle(file, name)
    position = file.tell()
    if position != file.seek(0, os.SEEK_END):
        # torch.load reads the tensors that the file lists, and leaves the others as the memory was.
        raise damaged(name, "it does not end with its last tensor")
    return content


def read_safetensors(file: BinaryIO, name: str) -> Any:
    """Return the state dict in a file of safetensors' format, in which timm's weights are published."""
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        fault = f"{name} is in safetensors' format, which needs one more package"
        raise UserError(f"{fault}: pip install safetensors") from None
    file.seek(0)
    with reporting_errors(f"{name} is damaged: copy or download it again"):
        return safetensors.torch.load(file.read())


def unpickle(file: BinaryIO, name: str) -> Any:
    """Return what torch.load reads when it may run only what is on its list; UserError if it fails."""
    file.seek(0)
    with safe_settings():
        try:
            return load_safely(file)
        except OSError:
            raise
        except Exception as error:  # the type depends on the bytes
            check_reading_works()
            if out_of_memory_message(error):
                raise UserError(f"{name} cannot be read: memory ran out, or the file is damaged") from error
            # The message of torch.load is left out: it may advise to run the code in the file.
            fault = f"is not a checkpoint that can be read safely ({type(error).__name__})"
            raise UserError(f"{name} {fault}: it must be a state dict, written by torch.save") from error


def load_safely(file: BinaryIO) -> Any:
    """Call torch.load so that it runs nothing in the file, inside a block of safe_settings."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


def check_reading_works() -> None:
    """Read a small file written here; if that fails, the error is not the fault of the user's file."""
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(1), "number": np.float64(0.5)}, file)
    file.seek(0)
    load_safely(file)


@contextlib.contextmanager
def safe_settings() -> Iterator[None]:
    """Inside the block, torch.load accepts SAFE, and does not warn of unusual tensors.

    Both are settings of the whole process: one thread at a time changes them, and puts them back.
    """
    with SETTINGS_LOCK:
        # safe_globals would also remove at the end what the program itself had declared safe.
        missing = [kind for kind in SAFE if kind not in torch.serialization.get_safe_globals()]
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(missing):
            yield
