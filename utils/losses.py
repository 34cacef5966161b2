"""The training loss."""

import torch.nn.functional as F
from torch import Tensor

from utils.datasets import IGNORED


def bce_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the binary cross-entropy over all labels but the IGNORED, whose number is returned beside it.

    logits: (B, C) float32. targets: (B, C) of 0, 1 and IGNORED. The recipe's loss is the mean: their ratio.
    """
    counted = (targets != IGNORED).float()
    loss = F.binary_cross_entropy_with_logits(logits, (targets == 1).float(), counted, reduction="sum")
    return loss, counted.sum()
