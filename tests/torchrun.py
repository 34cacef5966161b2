"""torchrun, to be started by preloaded.py in a process that has imported torch already."""

import sys
from pathlib import Path

from torch.distributed.run import main

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # as Python does for each of the scripts
    main()
