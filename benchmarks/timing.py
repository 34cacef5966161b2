"""Taking the time and the memory of two versions in turns."""

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
Result = TypeVar("Result")


class Usage(NamedTuple):
    """What a command took: seconds and, on Linux, its peak memory in MiB."""

    seconds: float
    memory: float


def in_turns(num_rounds: int, *functions: Callable[[], Result]) -> list[list[Result]]:
    """Call the functions in turns, so that a change of the machine meets all; return the results of each."""
    results: list[list[Result]] = [[] for _ in functions]
    for _ in range(num_rounds):
        for function, found in zip(functions, results):
            found.append(function())
    return results


def time_in_turns(num_rounds: int, *actions: Callable[[], Any]) -> list[float]:
    """Run the actions in turns and return the median seconds of each.

    The first round is a warm-up. It counts only if it is the only one.
    """
    rounds = in_turns(num_rounds, *(partial(seconds, action) for action in actions))
    return [statistics.median(taken[1:] or taken) for taken in rounds]


def seconds(action: Callable[[], Any]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, because the textbook must not profit from our allocator settings."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def run_measured(command: list[str], folder: Path) -> Usage:
    """Run Python with these arguments in a folder."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *command],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    taken, memory = map(float, result.stdout.split())
    return Usage(taken, memory)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def without_tf32() -> AbstractContextManager[None]:
    """Return a context in which convolutions do not use TF32, which rounds the two versions differently."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
