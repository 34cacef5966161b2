"""Asking a run to stop: a signal is noted, and the run stops where nothing is lost."""

import contextlib
import os
import signal
from collections.abc import Iterator

from utils.cli import UserError
from utils.distributed import RANK, WORLD_SIZE, any_process

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
received: list[int] = []


class Interrupted(Exception):  # noqa: N818
    """A run was asked to stop; `status` is the exit status that says by what."""

    def __init__(self):
        # SIGUSR1 is how schedulers announce their SIGTERM.
        super().__init__()
        self.status = 130 if signal.SIGINT in received else 143


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within, the first SIGINT, SIGTERM or SIGUSR1 is noted; a second one ends the process at once.

    Of several processes, which torchrun tells again what the system told them already, a second one does not.
    """
    before = {number: signal.signal(number, note) for number in SIGNALS}

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


def note(number: int, frame: object) -> None:
    if not received and RANK == 0:
        with contextlib.suppress(OSError):  # whoever read it may have had the same signal
            os.write(2, f"\n{signal.Signals(number).name}: finishing the step, then saving\n".encode())
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
        raise Interrupted


def leave_to_parent(worker: int) -> None:
    """Have a loader's worker ignore the signals that terminals and schedulers send to it as to its parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
