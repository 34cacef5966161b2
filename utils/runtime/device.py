"""The device and the precision that a command computes in."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.freed_memory import keep_freed_memory
from utils.runtime.processes import LOCAL_RANK, WORLD_SIZE

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_TRIAL = """
import torch
images, conv = torch.randn(2, 16, 32, 32).to(memory_format=torch.channels_last), torch.nn.Conv2d(16, 16, 3)
with torch.autocast("cpu", torch.bfloat16):
    maps = conv(images).flatten(1)
(maps @ maps.T).sum().backward()
"""


def choose_device(name: str, amp: str = "off", use_compile: bool = False) -> torch.device:
    """Return the named device, or for "auto" the first of CUDA, MPS and CPU; nothing is changed.

    Each process gets its own GPU. amp: a key of AMP_DTYPES. use_compile: whether torch.compile is used.
    Raises UserError if the device is missing or cannot do what is asked.
    """
    if name == "auto":
        name = find_device()
        if name == "cpu":
            print("No GPU found: running on the CPU.")
    if not is_available(name):
        raise UserError(f"--device {name}: PyTorch finds no such device here; use --device auto or cpu")
    if amp == "bf16" and name == "cpu":
        check_bf16()
    elif amp != "off" and name != "cuda":
        raise UserError(f"--amp {amp} needs a CUDA GPU, and this runs on {name}: leave it out")
    if name == "mps" and WORLD_SIZE > 1:
        raise UserError("processes cannot share this kind of GPU: use --device cpu, or one process")
    if name == "cuda":
        return choose_gpu(amp)
    if name == "cpu" and use_compile:
        check_compiler()
    return torch.device(name)


def set_up_device(device: torch.device) -> None:
    """Prepare this process for computing on a device that `choose_device` returned."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()


def find_device() -> str:
    """Return the first of "cuda", "mps" and "cpu" that this machine has."""
    return next(name for name in ("cuda", "mps", "cpu") if is_available(name))


def is_available(name: str) -> bool:
    """Return whether this machine has a device, "cuda", "mps" or "cpu"."""
    if name == "cuda":
        return torch.cuda.is_available()
    if name == "mps":
        return torch.backends.mps.is_available()
    return True


def choose_gpu(amp: str) -> torch.device:
    """Return this process's own GPU; UserError if there is none, or it cannot do `amp`."""
    gpu = torch.device("cuda", LOCAL_RANK)
    no_gpu = f"process {LOCAL_RANK} has no GPU: lower --nproc_per_node or use --device cpu"
    with reporting_errors(no_gpu), torch.cuda.device(gpu):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if amp == "bf16" and not has_bf16:
        raise UserError("--amp bf16 needs a GPU of compute capability 8.0 or later: use --amp fp16")
    return gpu


def check_compiler() -> None:
    """Raise UserError unless the C++ compiler that torch.compile calls on a CPU is installed."""
    if not is_installed(cpp_compiler()):
        compiler = cpp_compiler()
        raise UserError(f"--compile needs the C++ compiler {compiler}: install it or leave --compile out")


def has_compiler() -> bool:
    """Return whether all that torch.compile needs on a CPU is there: a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return is_installed(cpp_compiler()) and headers.exists()


def cpp_compiler() -> str:
    """Return the C++ compiler that torch.compile calls, and maybe options of it."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def is_installed(command: str) -> bool:
    """Return whether the program that a command starts with is installed."""
    return shutil.which(shlex.split(command)[0]) is not None


def check_bf16() -> None:
    """Raise UserError unless this CPU computes in bfloat16: some virtual machines only claim to."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or not re.search("avx512_bf16|amx_bf16", cpuinfo.read_text()):
        raise UserError("--amp bf16 needs a GPU, or a CPU with avx512_bf16 or amx_bf16: leave it out")
    # An instruction that the CPU lacks kills the process, so try it in another process.
    trial = subprocess.run([sys.executable, "-c", BF16_TRIAL], capture_output=True)
    if trial.returncode != 0:
        status = trial.returncode
        raise UserError(f"--amp bf16: a trial on this CPU failed with status {status}: leave it out")


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return a context in which torch computes in the precision `amp`, a key of AMP_DTYPES."""
    return torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "off")
