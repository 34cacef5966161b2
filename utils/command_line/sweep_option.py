"""The option --sweep of val.py."""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

from utils.inference.sweep import SweepAxes, Temperature
from utils.runtime.arguments import number
from utils.runtime.errors import UserError


class Axis(NamedTuple):
    """The values of "lam" or of "T" to evaluate."""

    name: str
    values: list[Temperature]


def axis(text: str) -> Axis:
    """Parse lam=0:1:0.1 (from:to:step) or T=trained,1,inf (trained: None); an argparse type."""
    name, _, values = text.partition("=")
    num_colons = values.count(":")
    if name not in ("lam", "T") or num_colons not in (0, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: write lam=0:1:0.1 (from:to:step) or T=1,2,4,inf")
    parse = number(float, 0, low_allowed=name == "lam")
    if num_colons == 2:
        return Axis(name, parse_range(text, values, parse))
    words = {"trained": None, "inf": math.inf, "99": math.inf} if name == "T" else {}
    found = [words[word] if word in words else parse(word) for word in values.split(",")]
    return Axis(name, list(dict.fromkeys(found)))


def parse_range(text: str, values: str, parse: Callable[[str], float]) -> list[Temperature]:
    """Return the numbers of a range from:to:step, which is a part of the axis `text`."""
    start, stop, step = map(parse, values.split(":"))
    if step == 0 or not start <= stop <= start + 1000 * step:
        raise argparse.ArgumentTypeError(f"{text!r}: a range goes up, in at most 1000 steps")
    num_steps = int((stop - start) / step + 1e-9)
    return [round(start + i * step, 10) for i in range(num_steps + 1)]


def sweep_axes(given: list[Axis]) -> SweepAxes:
    """Combine the axes of --sweep; UserError unless λ is given once, and T at most once."""
    if sorted(axis.name for axis in given) not in (["lam"], ["T", "lam"]):
        raise UserError("--sweep takes lam= once, and T= at most once, as in --sweep lam=0:1:0.1 T=1,2,4,inf")
    values = {axis.name: axis.values for axis in given}
    lams = [lam for lam in values["lam"] if lam is not None]
    return SweepAxes(lams, values.get("T", [None]))
