"""Commands import this before their other modules, so that torchvision does not import torch.compile.

One module of torchvision, ops/roi_align.py, asks torch._dynamo.utils for a function, and with it comes all of
torch.compile, and SymPy, which take about as long to import as all else besides torch. While torchvision is
imported here, a stand-in takes the place of torch._dynamo.utils. A call of that function, or a request for
anything else in that module, imports the real one. load_model does not import this module: in a program with
threads, another thread could import the stand-in meanwhile.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch  # noqa: F401  before the stand-in is there

REPLACED = "torch._dynamo.utils"


class StandIn(ModuleType):
    """A module in place of the real one, which it imports as soon as it is asked for something else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for __path__ and the like
            raise AttributeError(name)
        remove(self)
        return getattr(importlib.import_module(REPLACED), name)


def is_compile_supported(device: Any) -> Any:
    """Call the real function of this name."""
    return importlib.import_module(REPLACED).is_compile_supported(device)


def import_torchvision() -> None:
    """Import torchvision, with a stand-in for torch._dynamo.utils unless that has been imported already."""
    if REPLACED in sys.modules:
        return
    stand_in = StandIn(REPLACED)
    vars(stand_in)["is_compile_supported"] = is_compile_supported
    sys.modules[REPLACED] = stand_in
    try:
        import torchvision  # noqa: F401
    finally:
        remove(stand_in)


def remove(stand_in: StandIn) -> None:
    """Let the next import find the real module."""
    if sys.modules.get(REPLACED) is stand_in:
        del sys.modules[REPLACED]


import_torchvision()
