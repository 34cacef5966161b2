"""torchrun, with the narrow ResNet-18; preloaded.py starts it where torch is imported already."""

import sys
from pathlib import Path

from torch.distributed.run import main

from narrow import use_narrow_resnet18

if __name__ == "__main__":
    use_narrow_resnet18()  # as in the process of the tests
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # as Python does for each of the scripts
    main()
