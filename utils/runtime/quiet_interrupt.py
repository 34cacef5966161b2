"""A command imports this first, so that Ctrl-C while it imports its other modules prints no traceback.

`run_script` takes over while the command runs. The library does not import this module.
"""

import os
import signal


def exit_at_once(number: int, frame: object) -> None:
    """End the process with the exit status of SIGINT; there is nothing to save or to remove yet."""
    os._exit(130)


if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not if the shell lets it be ignored
    signal.signal(signal.SIGINT, exit_at_once)
