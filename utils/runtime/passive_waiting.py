"""Commands import this before torch, so that its threads soon stop using the CPU while they wait.

By default a thread that waits for the others keeps its core busy. If another program takes the core of one
thread, all others wait for it in this way, and the computation hardly advances. Most waits are short, so it
would cost time on an idle machine to sleep at once: threads try SPIN_COUNT times first. OpenMP reads the
variables when torch loads it; only GNU OpenMP, which torch has on Linux, knows the second one. Values that
the user has set stay. The library does not import this module.
"""

import os

SPIN_COUNT = 10_000  # docs/training.md has what it gains and costs

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
