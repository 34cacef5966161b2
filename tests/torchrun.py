"""torchrun, with the narrow ResNet-18; preloaded.py starts it where torch is imported already."""

import os
import signal
import sys
from pathlib import Path

from torch.distributed.run import main

from narrow import use_narrow_resnet18

LAUNCHER = os.getpid()


def restore_system_handlers() -> None:
    """Let signals end a rank, as in the new process that torchrun starts outside of these tests.

    A fork inherits torchrun's own handlers, which raise an exception.
    """
    if os.getppid() != LAUNCHER:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    use_narrow_resnet18()  # as in the process of the tests
    os.register_at_fork(after_in_child=restore_system_handlers)
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # as Python does for each of the scripts
    main()
