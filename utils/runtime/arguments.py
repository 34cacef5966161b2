"""Arguments of commands, checked before anything slow starts."""

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from utils.runtime.errors import UserError
from utils.runtime.limits import MAX_PIXELS


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default to every help text that does not explain it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = action.default != argparse.SUPPRESS and not isinstance(action.default, bool | None)
        if has_default and "[default" not in text:
            text += " [default: %(default)s]"
        return text


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def given_path(text: str) -> Path:
    """Parse a path; an argparse type. See expand_home."""
    return Path(expand_home(text))


def expand_home(text: str) -> str:
    """Replace ~ or ~USER at the start of a path by a home folder, which shells do not do in --option=~/path.

    Raises argparse's error if there is no such user, or if the path is empty, as an unset shell variable is.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        first = Path(text).parts[0]
        raise argparse.ArgumentTypeError(f"{text!r}: {first} is no user's home folder; for a file, ./{text}")
    return expanded


def number(kind: type, low: float, low_allowed: bool = True, high: float = 2**63) -> Callable[[str], float]:
    """Return an argparse type for an int or float (`kind`) with low ≤ x < high, or low < x < high."""
    word = {int: "whole number", float: "number"}[kind]
    bound = f"of at least {low}" if low_allowed else f"above {low}"
    bound += f" and below {high}" if high < 2**63 else ""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low < value < high or (low_allowed and value == low):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {word} {bound}")

    return parse


def add_max_pixels(group: argparse._ActionsContainer) -> None:
    """Add --max_pixels, which keeps a small file from decoding to an image that fills the memory."""
    pixels_help = "refuse larger images, which take 3 to 20 bytes of memory per pixel"
    group.add_argument("--max_pixels", type=number(int, 1), default=MAX_PIXELS, help=pixels_help)
