"""How much memory the weights of best.pth take: torchrun … tests/broadcast_memory.py FOLDER MIB.

FOLDER holds a best.pth of `make_network(MIB)`. Each process writes to FOLDER/<rank>.json how much its peak
memory grows from before it makes the network until it holds the weights of best.pth, as a multiple of MIB.
"""

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.runtime import distributed
from utils.runtime.processes import RANK
from utils.training.saving import broadcast_best


def make_network(size: int) -> nn.Module:
    """Return a network of `size` MiB."""
    return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(size)))


def peak() -> float:
    """Return the peak memory of this process in MiB; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(folder: Path, size: int) -> None:
    distributed.connect(torch.device("cpu"))
    distributed.gather("a first exchange, which loads what gloo needs")
    before = peak()
    network = make_network(size)
    state = SimpleNamespace(evaluated=network)
    broadcast_best(SimpleNamespace(folder=SimpleNamespace(path=folder), state=state))
    growth = (peak() - before) / size
    assert all(bool((parameter == 2).all()) for parameter in network.parameters())
    (folder / f"{RANK}.json").write_text(json.dumps(growth))
    distributed.disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
