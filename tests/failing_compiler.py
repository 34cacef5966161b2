"""val.py where torch.compile fails in the second process, and gives twice the features in the first one.

torchrun --nproc_per_node=2 tests/failing_compiler.py VAL_OPTIONS
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import val
from utils.runtime import device
from utils.runtime.processes import RANK
from utils.runtime.script import run_script

Features = Callable[[Tensor], Tensor]


def compile_twice_or_fail(features: Features) -> Features:
    def compiled(images: Tensor) -> Tensor:
        if RANK == 1:
            raise RuntimeError("no space left")
        return 2 * features(images)

    return compiled


if __name__ == "__main__":
    torch.compile = compile_twice_or_fail
    device.check_compiler = lambda: None
    run_script(val.main)
