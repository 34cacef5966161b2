"""Build a network for weights to be loaded into."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from pipeline.models import BuildOptions, build
from pipeline.network import Network
from pipeline.timm_csra import is_timm

# Those of `init` are named, too, as what they call is not noticed.
FILL_WITH_RANDOM_NUMBERS = (
    init.kaiming_uniform_,
    init.normal_,
    init.uniform_,
    Tensor.normal_,
    Tensor.uniform_,
)


class ZerosForRandomNumbers(TorchFunctionMode):
    """Inside the block tensors are filled with zeros instead of random numbers, which takes far less time."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or fill its tensor with zeros."""
        kwargs = kwargs or {}
        if func not in FILL_WITH_RANDOM_NUMBERS:
            return func(*args, **kwargs)
        tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
        with torch.no_grad():
            return tensor.zero_()


def build_network(options: BuildOptions, normalization: str) -> Network:
    """Return a network whose weights mean nothing yet, to load others into.

    torch's global random state does not change. Raises ValueError as `build` does.
    """
    # A truncated normal distribution draws until all numbers fit. For torchvision's networks zeros fit.
    filling = contextlib.nullcontext() if is_timm(options["model"]) else ZerosForRandomNumbers()
    with torch.random.fork_rng(devices=[]), filling:
        network = build(**options)
    network.normalization = normalization
    return network
