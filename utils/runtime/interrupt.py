"""Asking a run to stop: a signal is noted, and the run stops where nothing is lost."""

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from typing import NoReturn

from utils.runtime.cli import Interrupted, UserError
from utils.runtime.distributed import RANK, WORLD_SIZE, any_process

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
received: list[int] = []


@contextlib.contextmanager
def listening(answer: str) -> Iterator[None]:
    """Within, the first SIGINT, SIGTERM or SIGUSR1 is noted and answered; a second one ends the process.

    Of several processes, which torchrun tells again what the system told them already, a second one does not.
    """
    before = {number: signal.signal(number, functools.partial(note, answer)) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield
    except (Interrupted, UserError, OSError):
        raise
    except Exception:
        restore()
        if received and WORLD_SIZE > 1:  # the others are gone: there is no step to finish
            signal.raise_signal(received.pop())
        raise
    finally:
        received.clear()
        restore()


def note(answer: str, number: int, frame: object) -> None:
    if not received and RANK == 0:
        with contextlib.suppress(OSError):  # whoever read it may have had the same signal
            os.write(2, f"\n{signal.Signals(number).name}: {answer}\n".encode())
    received.append(number)
    if WORLD_SIZE == 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other in SIGNALS[1:]:
            signal.signal(other, signal.SIG_DFL)


def asked_anywhere() -> bool:
    """Tell all processes, each of which must ask, whether a signal was noted in any."""
    return any_process(bool(received))


def stop_if_asked() -> None:
    """Raise Interrupted if a signal was noted in this process."""
    if received:
        stop()


def stop() -> NoReturn:
    """Raise Interrupted, for the signal that was noted in any process."""
    # SIGUSR1 is how schedulers announce their SIGTERM.
    raise Interrupted(130 if signal.SIGINT in received else 143)


def leave_to_parent(worker: int) -> None:
    """Have a loader's worker ignore the signals that terminals and schedulers send to it as to its parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
