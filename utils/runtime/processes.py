"""Which of a command's processes this one is, as torchrun tells it; without torchrun there is one process."""

import os

RANK = int(os.environ.get("RANK", 0))  # from 0, among all processes
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))  # the number of all processes
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # from 0, among the processes of this machine
LOCAL_WORLD_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the number of processes of this machine
