"""How bench.py measures: its settings, the rows of its table, and functions that take time and memory."""

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
# Runs the given command and prints its seconds and its peak memory in MiB. It runs in a small process of its
# own, because a child's peak starts at the memory of its parent.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


class Variant(NamedTuple):
    """A way to run our version.

    amp: as the option --amp. compile: torch.compile's mode, or "". fold: whether batch-norm is folded into
    the convolutions, which only validation can do.
    """

    amp: str = "off"
    compile: str = ""
    fold: bool = False

    def describe(self, device: torch.device) -> str:
        """Return its name in the table; PyTorch's float32 convolutions use TF32 on a GPU."""
        name = {"off": "TF32" if device.type == "cuda" else "float32"}.get(self.amp, self.amp)
        mode = {"": "", "default": ", compiled"}.get(self.compile, f", compiled with {self.compile}")
        return name + mode + (", batch-norm folded" if self.fold else "")


@dataclass(frozen=True)
class Settings:
    """What the stages compute on, and how much of it. The defaults are the full size.

    folder: for files that a stage writes. photos: paths of JPEGs. depth: of the ResNet.
    variants: how train, val, head, demo and shapes run our version; the textbook version has only one way.
    batch_size, num_steps, num_workers: of training and validation.
    num_shapes, num_seeds: training images and runs of shapes. tolerance: how far mAP may differ, in points.
    num_rounds: of the stages that take seconds. num_long_rounds: of those that take minutes.
    """

    folder: Path
    photos: list[str]
    device: torch.device = torch.device("cpu")
    variants: tuple[Variant, ...] = (Variant(),)
    num_workers: int = 0
    depth: int = 101
    img_size: int = 448
    batch_size: int = 16
    num_steps: int = 2
    num_scored_images: int = 40_137  # in COCO's val2014
    num_coco_images: int = 82_783  # in COCO's train2014
    num_coco_boxes: int = 604_907
    num_demo_photos: int = 500
    num_shapes: int = 3000
    num_seeds: int = 3
    tolerance: float = 0.5
    num_rounds: int = 10
    num_long_rounds: int = 2

    @property
    def amps(self) -> list[str]:
        """The values of --amp among the variants."""
        return list(dict.fromkeys(variant.amp for variant in self.variants))


class Target(NamedTuple):
    """The lowest ratio textbook / ours, images per second and share of the limit in % to reach; 0: any."""

    ratio: float
    rate: float = 0
    share: float = 0


TARGETS = {  # in float32, and in lower precision
    ("cpu", "training"): (Target(1.85), Target(3.4)),
    ("cpu", "validation"): (Target(1.75), Target(3.4)),
    ("cpu", "head"): (Target(1.55), Target(2.3)),
    ("cpu", "demo"): (Target(2), Target(2)),
    ("cuda", "training"): (Target(1.5, share=95), Target(4, rate=600, share=90)),
    ("cuda", "validation"): (Target(1.5), Target(4, rate=1500)),
    ("cuda", "head"): (Target(2), Target(2)),
}


def find_target(device: torch.device, stage: str, amp: str) -> Target | None:
    """Return the target of a stage in a precision, None if there is none."""
    return TARGETS.get((device.type, stage), (None, None))[amp != "off"]


@dataclass
class Row:
    """A line of the table: what ours and the textbook version take. None stands for what was not measured.

    limit: the cost, in the same unit, of the work that no version can avoid. same: whether both versions
    computed the same. check: what was compared, and how closely it agrees.
    """

    stage: str
    unit: str
    ours: float | None
    textbook: float | None = None
    target: Target | None = None
    limit: float | None = None
    limit_name: str = ""
    same: bool | None = None
    check: str = ""


def in_turns(num_rounds: int, *actions: Callable[[], Any]) -> list[float]:
    """Run the actions in turns and return the median seconds of each.

    The first round is a warm-up. It counts only if it is the only one.
    """
    seconds = [[] for _ in actions]
    for _ in range(num_rounds):
        for action, taken in zip(actions, seconds):
            start = time.perf_counter()
            action()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:] or taken) for taken in seconds]


def in_child(function: Callable[..., Any], *arguments) -> Any:
    """Call a function in a new process, because the textbook must not profit from our allocator settings."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def run_measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Run Python with these arguments in a folder; return seconds and, on Linux, the peak memory in MiB."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *command],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, memory = map(float, result.stdout.split())
    return seconds, memory


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def without_tf32() -> AbstractContextManager:
    """Return a context in which convolutions do not use TF32, which rounds the two versions differently."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
