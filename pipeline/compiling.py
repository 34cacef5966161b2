"""A network compiled by torch.compile, for inference."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.network import Network


class CompiledNetwork(Network):
    """A network whose features are computed by compiled code, in batches of one size.

    The first batch compiles it. torch.compile would compile again, as long as the first time, for a batch of
    another size or other strides. So smaller batches are padded, and all get the same memory format.
    The classifier is that of `network`, and is not compiled. On a CPU, run the first batch in `freezing`.
    """

    def __init__(self, network: Network, batch_size: int):
        super().__init__()
        self.batch_size = batch_size
        self.classifier = network.classifier
        self.compiled = torch.compile(network.features)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], of at most batch_size, to the last feature map (B, D, h, w)."""
        missing = self.batch_size - len(images)
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else images
        padded = padded.contiguous(memory_format=torch.channels_last)
        return self.compiled(padded)[: len(images)]


def freezing() -> contextlib.AbstractContextManager[None]:
    """Return a context for the first batch of a compiled network: its weights become constants in the code.

    On a CPU such code is fastest. It does not follow later changes of the weights. The same option given to
    torch.compile is not enough, because the weights are constants only if it holds while the network is
    traced.
    """
    import torch._inductor.config  # here, because it takes a second

    return torch._inductor.config.patch(freezing=True)
