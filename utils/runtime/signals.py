"""The signals that end a command, and what they do to it.

While a command imports its modules, Ctrl-C ends it at once (quiet_interrupt.py). While it runs, a signal
raises Interrupted, so that it cleans up on its way out (this file). In loops over images a signal is only
recorded, and the loop stops after its batch (interrupt.py). Worker processes see no signals (workers.py).
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from utils.runtime.processes import RANK, WORLD_SIZE

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
    SIGNALS.append(signal.SIGHUP)


class Interrupted(SystemExit):
    """A signal asked the command to stop; a SystemExit passes every `except Exception` on its way out."""


@contextlib.contextmanager
def raising_interrupted() -> Iterator[None]:
    """Inside the block, a signal raises Interrupted: what is half written is removed, and locks are freed.

    Under torchrun only the first process writes. The others may wait in an exchange, where they would not
    notice a handler, so they keep those of the system and end at once.
    """
    if RANK > 0:
        yield
        return
    before = {number: signal.signal(number, raise_interrupted) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """Raise Interrupted; without torchrun, which repeats a signal, the next one ends the process."""
    if WORLD_SIZE == 1:
        let_next_signal_end_the_process()
    raise Interrupted(exit_status([number]))


def exit_status(numbers: list[int]) -> int:
    """Return the exit status of SIGINT if it is one of the signals, else that of SIGTERM.

    Schedulers send SIGUSR1 as a warning before SIGTERM.
    """
    return 130 if signal.SIGINT in numbers else 143


def let_next_signal_end_the_process() -> None:
    """Restore the default handlers of SIGNALS, except of SIGHUP, which a closed terminal can send twice."""
    for number in SIGNALS:
        if number.name == "SIGINT":
            # It raises KeyboardInterrupt, which lets the command remove what it has half written.
            signal.signal(number, signal.default_int_handler)
        elif number.name != "SIGHUP":
            signal.signal(number, signal.SIG_DFL)
