"""What the commands share: arguments checked as they are read, and mistakes that end in one line."""

import argparse
import math
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend; its message is one line naming the bad value or file and the way out."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors take one line: `<command>: error: <what>`, exit status 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def number(kind: type, low: float, low_allowed: bool = True) -> Callable[[str], float]:
    """Return an argparse type: a finite `kind` (int or float) of at least (or above) `low`."""
    word = {int: "whole number", float: "number"}[kind]
    bound = f"of at least {low}" if low_allowed else f"above {low}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and (value > low or (low_allowed and value == low)):
            return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {word} {bound}")

    return parse


def run(main: Callable[[], None]) -> None:
    """Run a command; a UserError, or a file the system refuses, ends it in one line and exit status 2."""
    try:
        main()
    except UserError as error:
        message = str(error)
        if message.startswith(
            "Caught UserError in DataLoader worker"
        ):  # its traceback; the last line is the message
            message = message.splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
    except BrokenPipeError:  # whoever read the output has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(2)
