"""The device that a command runs on, the precision it computes in, and how both are made fast."""

import ctypes
import os
import shlex
import shutil
import sys

import torch

from utils.runtime.cli import UserError
from utils.runtime.distributed import LOCAL_RANK, WORLD_SIZE

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, amp: str = "off") -> torch.device:
    """Return the named device, or for auto the first of CUDA, MPS and CPU, set up to run fast.

    Of several processes each gets a GPU of its own. Raises UserError if the device is not there or cannot
    compute in `amp`, a key of AMP_DTYPES.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in there if there[device])
        if name == "cpu":
            print("No GPU found: running on the CPU.")
    if not there[name]:
        raise UserError(f"--device {name}: PyTorch finds no such device here; use --device auto or cpu")
    if amp != "off" and name != "cuda":
        raise UserError(f"--amp {amp} needs a CUDA GPU, and this runs on {name}: leave it out")
    if name == "mps" and WORLD_SIZE > 1:
        raise UserError("processes cannot share this kind of GPU: use --device cpu, or one process")
    if name == "cuda":
        return choose_gpu(amp)
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def choose_gpu(amp: str) -> torch.device:
    """Return the GPU of this process: the first, unless torchrun started several processes."""
    if torch.cuda.device_count() <= LOCAL_RANK:
        raise UserError(
            f"torchrun started more processes than this machine has GPUs ({torch.cuda.device_count()}): "
            "lower --nproc_per_node, or use --device cpu"
        )
    device = torch.device("cuda", LOCAL_RANK) if WORLD_SIZE > 1 else torch.device("cuda")
    torch.cuda.set_device(LOCAL_RANK)
    if amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--amp bf16 needs a GPU of compute capability 8.0 or later: use --amp fp16")
    return device


def keep_freed_memory() -> None:
    """Have glibc keep the memory that is freed, where it would return and page in anew gigabytes a step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # <malloc.h>
        libc.mallopt(m_trim_threshold, -1)
        libc.mallopt(m_mmap_max, 0)


def check_compiler(device: torch.device) -> None:
    """Raise UserError where torch.compile would find no compiler for the CPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(shlex.split(compiler)[0]) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and {compiler} is not there: install it, or leave --compile out"
        )


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the context that computes in `amp`, a key of AMP_DTYPES; "off" changes nothing."""
    return torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "off")
