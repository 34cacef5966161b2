"""What glibc does with memory that is freed: by default it gives back gigabytes in each step of a network.

Then it asks the system for them again, which takes time. So the commands make it keep what is freed. On a
small machine MALLOC_TRIM_THRESHOLD_=131072 in the environment saves memory and costs time.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch

# Settings of glibc's mallopt, from <malloc.h>.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Make glibc keep freed memory from now on."""
    if (libc := configurable_glibc()) is not None:
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_MAX, 0)


@contextlib.contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[None]:
    """Make glibc keep freed memory inside the block only, for a program that is not ours.

    device: that the block computes on; only on a CPU do the tensors of a network come from glibc.
    """
    if device.type != "cpu":
        yield
        return
    libc = configurable_glibc()
    keep_freed_memory()
    try:
        yield
    finally:
        if libc is not None:
            # The values that glibc itself comes to in a program that frees large blocks.
            libc.mallopt(M_MMAP_MAX, 65536)
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
            libc.malloc_trim(0)


def configurable_glibc() -> ctypes.CDLL | None:
    """Return glibc, or None if it is not the C library here, or if the environment configures it."""
    is_set = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if sys.platform != "linux" or is_set:
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") else None
