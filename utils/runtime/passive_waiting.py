"""Commands import this before torch, so that its threads wait without using the CPU.

By default a thread that waits for the others keeps its core busy. If another program runs on the core of one
of the others, nothing gets on. OpenMP reads the variable when it is loaded, with torch. A value that the user
has set stays. What is imported as a library does not import this module.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
