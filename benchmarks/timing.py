"""How bench.py measures: a row of its table, actions timed in turns, and processes of their own."""

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Runs the command given to it and prints seconds and peak memory; in between, a process that is small itself,
# since a child's peak starts with what its parent held.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


@dataclass
class Row:
    """A line of the table: what the textbook, we, and the limit take, in `unit`; less is better.

    target: the least ratio textbook / ours aimed at. same: whether both computed the same thing, by `check`.
    """

    stage: str
    unit: str
    textbook: float
    ours: float
    target: float | None
    limit: float | None = None
    limit_name: str = ""
    same: bool = True
    check: str = ""


def in_turns(rounds: int, *actions: Callable[[], Any]) -> list[float]:
    """Run the actions in turns, once to warm up and `rounds` times more; returns their median seconds."""
    seconds = [[] for _ in actions]
    for _ in range(rounds + 1):
        for action, taken in zip(actions, seconds):
            start = time.perf_counter()
            action()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in seconds]


def in_child(function: Callable[..., Any], *arguments) -> Any:
    """Call a function in a fresh process: what the memory allocator was told in one does not help another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def run_measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Run Python in a folder; returns seconds and, on Linux, the peak memory in MiB."""
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
    """Wait for what a GPU has still to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
