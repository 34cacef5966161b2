"""Progress bars in a terminal, and when to print a line of progress elsewhere."""

import time
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from utils.runtime.processes import RANK

SECONDS_BETWEEN_LINES = 60.0
Item = TypeVar("Item")


def progress_bar(total: int, description: str, unit: str = "img", delay: float = 0) -> "tqdm[Any]":
    """Return a bar over `total` units on stderr; only the first process shows it, and only in a terminal.

    unit: what is counted, img for images. delay: the seconds after which it appears.
    """
    options: dict[str, Any] = {"dynamic_ncols": True, "delay": delay, "disable": hidden()}
    return tqdm(total=total, desc=description, unit=unit, leave=False, **options)


def delayed_bar(items: Iterable[Item], description: str, total: int | None = None) -> "tqdm[Item]":
    """Return items, one for each image, with a bar that appears after a second where progress_bar does.

    total: the number of items, if they have no length.
    """
    return tqdm(items, desc=description, total=total, unit="img", leave=False, delay=1, disable=hidden())


def hidden() -> bool | None:
    """Return what tqdm takes to hide a bar: always in other processes, None for unless in a terminal."""
    return None if RANK == 0 else True


def download_bar(total: int | None, name: str) -> "tqdm[Any]":
    """Return a bar over the bytes of a download, shown as progress_bar is; total: None if not known."""
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": hidden()}
    return tqdm(total=total, desc=name, leave=False, dynamic_ncols=True, **options)


class ProgressLines:
    """Says when a line of progress is due: every so many steps, and once a minute if the steps are slow.

    every: the number of steps between two lines. first_after: the first line is due at the first step after
    so many seconds, so that a user soon sees that the command works, and how fast.
    """

    def __init__(self, every: int, first_after: float = 0.0) -> None:
        self.every = every
        self.next_time = time.monotonic() + first_after

    def due(self, step: int) -> bool:
        """Return whether to print a line after this step, counted from 1; the clocks of processes differ."""
        return step % self.every == 0 or time.monotonic() >= self.next_time

    def printed(self) -> None:
        """Note that a line was printed just now."""
        self.next_time = time.monotonic() + SECONDS_BETWEEN_LINES
