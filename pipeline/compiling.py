"""A network compiled by torch.compile, for inference."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.network import Network


class CompiledNetwork(Network):
    """A network whose features are compiled for batches of one size; smaller batches are padded to it.

    Another size would be compiled again, which takes as long as the first. The first batch compiles: see
    `freezing`. The classifier is that of `network`, and is not compiled.
    """

    def __init__(self, network: Network, batch_size: int):
        super().__init__()
        self.batch_size = batch_size
        self.classifier = network.classifier
        self.compiled = torch.compile(network.features)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], of at most batch_size, to the last feature map (B, D, h, w)."""
        missing = self.batch_size - len(images)
        whole = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else images
        # Other strides would be compiled again, too.
        whole = whole.contiguous(memory_format=torch.channels_last)
        return self.compiled(whole)[: len(images)]


def freezing() -> contextlib.AbstractContextManager[None]:
    """Return a context in which the weights of what is compiled are constants: on a CPU this is fastest.

    They then no longer follow changes of the network. The option of torch.compile is not enough: the weights
    stay inputs unless the setting holds while the network is traced.
    """
    import torch._inductor.config  # here, because it takes a second

    return torch._inductor.config.patch(freezing=True)
