"""Commands import this before torch, so that its threads wait without using the CPU.

By default a thread that waits for the others keeps its core busy. If another program takes the core of one
thread, all others wait for it in this way, and the computation hardly advances. OpenMP reads the variable
when torch loads it. A value that the user has set stays. The library does not import this module.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
