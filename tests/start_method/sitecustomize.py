"""Python imports this module at its start: it sets how multiprocessing starts processes.

PYTHONPATH=tests/start_method START_METHOD=spawn python -m pytest runs all tests, and the commands that they
start, as they run on macOS and Windows (spawn), or on Linux with Python 3.14 (forkserver).
"""

import multiprocessing
import os

multiprocessing.set_start_method(os.environ["START_METHOD"])
