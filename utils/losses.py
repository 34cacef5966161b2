"""The training loss."""

import torch
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


def asl_loss(
    logits: Tensor, targets: Tensor, gamma_neg: float = 4, gamma_pos: float = 0, clip: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Sum the asymmetric loss over the known labels (Ridnik et al., ICCV 2021, Eq. 7, with its values).

    Logits and targets (B, C) as in `bce_loss`. Easy negatives count less, by the focus gamma_neg and by
    lowering their probability p by clip: -(1-p)^gamma_pos log p for positives, -q^gamma_neg log(1-q) for
    negatives, q = max(p - clip, 0). Returns the sum and the number of known labels.
    """
    known = targets != IGNORED
    logits, positive = logits.float(), targets == 1
    p = logits.sigmoid()
    q = (p - clip).clamp(min=0)
    loss = torch.where(
        positive, -((1 - p) ** gamma_pos) * F.logsigmoid(logits), -(q**gamma_neg) * torch.log1p(-q)
    )
    return (loss * known).sum(), known.sum().float()


LOSSES = {"bce": bce_loss, "asl": asl_loss}
