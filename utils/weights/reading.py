"""Read what torch.save wrote, without running code in the file."""

import argparse
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from utils.runtime.cli import UserError, reporting_errors


class NumpyType:
    """Stands for a NumPy type in a pickle: a code such as "f8", then a state that holds the byte order."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple):
        self.order = state[1]


def python_number(kind: NumpyType, data: bytes) -> float | int:
    """Return the number that a NumPy scalar in a pickle holds; TypeError if it is no number."""
    is_type = isinstance(kind, NumpyType) and kind.order in ("", *"<>|=")
    value = np.frombuffer(data, kind.order + kind.code, count=1).item() if is_type else None
    if not isinstance(value, int | float):
        raise TypeError("not a number")
    return value


# What a pickle may hold besides PyTorch's own. NumPy's own functions can be made to crash, or worse.
SCALARS = [(python_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
SAFE = [*SCALARS, (NumpyType, "numpy.dtype"), TorchVersion, argparse.Namespace]


def read_file(path: Path) -> Any:
    """Read a file that torch.save wrote: nothing in the file is run.

    Raises UserError if the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'not a file: name best.pth in it' if path.exists() else 'no such file'}")
    check_intact(path)
    try:
        # The warnings are about unusual tensors, which load_weights refuses.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on the bytes, and the message can advise to run the file
        fault = f"is not a checkpoint that can be read safely ({type(error).__name__})"
        raise UserError(f"{path} {fault}: it must be a state dict, written by torch.save") from None


def check_intact(path: Path) -> None:
    """Raise UserError for a web page or a wrong checksum in the file, which torch.load does not check."""
    with open(path, "rb") as file:
        start = file.read(500).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise UserError(f"{path} is a web page, not a checkpoint: download it again in a browser")
    with reporting_errors(f"{path} is damaged"):
        if not zipfile.is_zipfile(path):
            return  # from before PyTorch 1.6, or not a checkpoint: torch.load finds out
        with zipfile.ZipFile(path) as file:
            # torch.save does not compress. A compressed file could expand to fill the memory.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()) or file.testzip():
                raise UserError(f"{path} is damaged, or not from torch.save: copy or download it again")
