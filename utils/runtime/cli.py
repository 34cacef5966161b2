"""What the commands share: arguments checked as they are read, and mistakes that end in one line."""

import argparse
import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class Interrupted(Exception):  # noqa: N818
    """A signal asked the command to stop; `status` is the exit status that says which: 130 or 143."""

    def __init__(self, status: int):
        super().__init__()
        self.status = status


class UserError(Exception):
    """A mistake the user can mend; its message is one line naming the bad value or file and the way out."""


@contextlib.contextmanager
def blaming(what: object) -> Iterator[None]:
    """Within, a ValueError is a mistake of the user's, in `what`: a UserError that says so."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors take one line: `<command>: error: <what>`, exit status 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def given_path(text: str) -> Path:
    """Parse a path, which a variable of the shell that is not set would leave empty; an argparse type."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def number(kind: type, low: float, low_allowed: bool = True, high: float = 2**63) -> Callable[[str], float]:
    """Return an argparse type: a `kind` (int or float) of at least (or above) `low`, and below `high`."""
    word = {int: "whole number", float: "number"}[kind]
    bound = f"of at least {low}" if low_allowed else f"above {low}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low < value < high or (low_allowed and value == low):
            return value
        raise argparse.ArgumentTypeError(
            f"{text!r} is not below {high:.4g}" if value >= high else f"{text!r} is not a {word} {bound}"
        )

    return parse


def add_data_arguments(parser: Parser, otherwise: str, batch: str) -> argparse._ArgumentGroup:
    """Add the options that training and evaluation share.

    otherwise: says where a default comes from. batch: what --batch_size counts.
    """
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="voc07",
        help="voc07, voc12, coco, coco2017, wider, shapes, or NAME for a folder data/NAME/ with train.json, "
        "test.json and classes.json [default: %(default)s]",
    )
    group.add_argument(
        "--num_cls", type=number(int, 1), help=f"number of classes, checked [default: {otherwise}]"
    )
    # At 32 pixels the last feature map is one place, over which a batch of one image has no variance.
    group.add_argument(
        "--img_size", type=number(int, 33), help=f"side of the square input, pixels [default: {otherwise}]"
    )
    group.add_argument(
        "--batch_size", type=number(int, 1), default=16, help=f"{batch} [default: %(default)s]"
    )
    group.add_argument(
        "--num_workers",
        type=number(int, 0, high=1000),
        default=default_workers(),
        help="processes that load images [default: one per CPU core, at most 8; torchrun's share the cores]",
    )
    add_max_pixels(group)
    return group


def add_max_pixels(group: argparse._ArgumentGroup) -> None:
    """Add the option that keeps a small file from being decoded to an image that fills the memory."""
    group.add_argument(
        "--max_pixels",
        type=number(int, 1),
        default=100_000_000,
        help="refuse larger images, lest a bomb fill the memory: 3 to 20 bytes a pixel, by format, in each "
        "process that loads images [default: %(default)s]",
    )


def add_tta(group: argparse._ArgumentGroup) -> None:
    """Add the option that augments images in testing."""
    group.add_argument(
        "--tta",
        choices=["off", "flip"],
        default="off",
        help="flip: mean of image and mirror image [default: off]",
    )


def default_workers() -> int:
    """Return a worker for each CPU core that is this process's own on its machine, at most 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def add_run_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options that say what training and evaluation run on."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="[default: a GPU if there is one]",
    )
    group.add_argument(
        "--amp",
        choices=["off", "bf16", "fp16"],
        default="off",
        help="mixed precision, on CUDA GPUs; off: float32, as the paper's [default: %(default)s]",
    )
    group.add_argument(
        "--compile", action="store_true", help="let torch.compile fuse the network: minutes once, then faster"
    )
    return group


def lack_of_memory(error: Exception) -> str | None:
    """Return what to say where an error means that memory ran out, else None."""
    text = str(error).partition("\n")[0]
    reason = text.partition(". ")[0].removesuffix(".")
    if text.startswith("DataLoader worker") and "shared memory" in text:
        return f"{reason}: give the container more shared memory, or use --num_workers 0"
    if text.startswith("DataLoader worker") and ("Killed" in text or "exited unexpectedly" in text):
        return (
            f"{reason}: the system kills processes when memory runs out; "
            "use fewer --num_workers, or a smaller --batch_size"
        )
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "t allocate memory" in text
    ):
        return f"memory ran out ({reason}): a smaller --batch_size, --img_size or --max_pixels takes less"
    return None


def run(main: Callable[[], None]) -> None:
    """Run a command; a UserError, or a file the system refuses, ends it in one line and exit status 2.

    Of the processes that torchrun started only the first prints. A mistake that all meet, or that cuts the
    others off, is said once: the rest wait for torchrun to end them, once the one that said it has ended.
    """
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to stop
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        # From a loader's worker it comes as that worker's traceback, with the message at the end.
        message = str(error).rpartition(f"{UserError.__module__}.UserError: ")[2]
    except BrokenPipeError:  # whoever read the output has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stop:
        sys.exit(stop.status)
    except Exception as error:
        message = lack_of_memory(error)
        if message is None:
            time.sleep(5 if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0)
            raise
    else:
        return
    finally:
        end_workers()
    time.sleep(5 if int(os.environ.get("LOCAL_RANK", 0)) else 0)
    print(f"{os.path.basename(sys.argv[0])}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def one_line(message: str) -> str:
    """Return a message in one line, not too long and without control characters, maybe a stranger's."""
    message = " ".join(message.splitlines())
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    return message if len(message) <= 2000 else f"{message[:1000]} … {message[-500:]}"


def end_workers() -> None:
    """End the processes that load images: they ignore the SIGTERM for which the exit would wait."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes their end for a failure
    for process in multiprocessing.active_children():
        process.kill()
