"""Stopping on a signal: the handler only records it, and the loops stop between two batches."""

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from typing import NoReturn

from utils.runtime.errors import UserError
from utils.runtime.processes import RANK, WORLD_SIZE
from utils.runtime.signals import SIGNALS, Interrupted, exit_status, let_next_signal_end_the_process

received: list[int] = []


@contextlib.contextmanager
def deferring_signals(message: str) -> Iterator[None]:
    """Record a signal inside the block; a second one ends the process, except under torchrun."""
    before = {number: signal.signal(number, functools.partial(record_signal, message)) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        # The step failed because the other processes ended at the signal: end at it, too.
        if received and WORLD_SIZE > 1 and not isinstance(error, UserError | OSError):
            signal.signal(received[0], before[received[0]])
            signal.raise_signal(received[0])
        raise
    finally:
        received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def record_signal(message: str, number: int, frame: object) -> None:
    """Record a signal and print `message`; without torchrun, let the next signal end the process.

    torchrun sends its processes the same signal again, so there a repeat is ignored.
    """
    if not received and RANK == 0:
        second = "; a second signal ends it at once" if WORLD_SIZE == 1 else ""
        with contextlib.suppress(OSError):  # stderr may be a pipe that the same signal closed
            os.write(2, f"\n{signal.Signals(number).name}: {message}{second}\n".encode())
    received.append(number)
    if WORLD_SIZE == 1:
        let_next_signal_end_the_process()


def stop_if_asked() -> None:
    """Raise Interrupted if a signal was recorded."""
    if received:
        stop()


def stop() -> NoReturn:
    """Raise Interrupted for the signals that were recorded."""
    raise Interrupted(exit_status(received))
