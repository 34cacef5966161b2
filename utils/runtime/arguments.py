"""Arguments of commands, checked before anything slow starts."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from utils.runtime.errors import UserError
from utils.runtime.limits import MAX_PIXELS


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default to every help text that does not explain it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = not isinstance(action.default, bool | None) and action.dest != "help"
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
    """Parse a path that is not empty (an unset shell variable gives an empty one); an argparse type."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


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
