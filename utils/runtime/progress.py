"""Progress on stderr: a bar in a terminal, now and then a plain line in a log."""

import sys
from typing import IO

from tqdm import tqdm

from utils.runtime.distributed import RANK


def progress(total: int, description: str) -> tqdm:
    """Return a tqdm bar over `total` images, or, where stderr is no terminal, a line every half minute.

    Of several processes only the first shows it.
    """
    kind = tqdm if sys.stderr.isatty() else LogLines
    return kind(total=total, desc=description, unit="img", leave=False, dynamic_ncols=True, disable=RANK != 0)


class LogLines(tqdm):
    """A tqdm whose every display is a line of its own, for files and schedulers."""

    def __init__(self, **kwargs):
        # A delay leaves out the line at 0 %, and any position but the first the carriage return at the end.
        kwargs |= {"mininterval": 30, "maxinterval": 30, "delay": 1e-9, "position": 1}
        layout = "{desc}  {n_fmt}/{total_fmt} images  {rate_fmt}  {elapsed}<{remaining}{postfix}"
        super().__init__(**kwargs, bar_format=layout)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            print(self, file=sys.stderr, flush=True)

    @classmethod
    def write(cls, s: str, file: IO[str] | None = None, **kwargs) -> None:
        print(s, file=file, flush=True)

    def clear(self, nolock: bool = False) -> None:
        pass
