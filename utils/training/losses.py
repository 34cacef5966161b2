"""The training losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data.labels import IGNORED


def bce_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the binary cross-entropy over the known labels; the paper's loss is its mean.

    logits: (B, C) float32. targets: (B, C) of 0, 1 and IGNORED. Returns the sum and the number of labels.
    """
    known = (targets != IGNORED).float()
    loss = F.binary_cross_entropy_with_logits(logits, (targets == 1).float(), known, reduction="sum")
    return loss, known.sum()


def asl_loss(
    logits: Tensor, targets: Tensor, gamma_neg: float = 4, gamma_pos: float = 0, clip: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Sum the asymmetric loss over the known labels (Ridnik et al., ICCV 2021, Eq. 7, with its values).

    With the score p and q = max(p - clip, 0), it is -(1-p)^gamma_pos log p for a positive, and
    -q^gamma_neg log(1-q) for a negative, so easy negatives count less. logits, targets and results are those
    of `bce_loss`.
    """
    known = targets != IGNORED
    logits = logits.float()
    p = logits.sigmoid()
    q = (p - clip).clamp(min=0)
    positive_loss = -((1 - p) ** gamma_pos) * F.logsigmoid(logits)
    loss = torch.where(targets == 1, positive_loss, -(q**gamma_neg) * torch.log1p(-q))
    return (loss * known).sum(), known.sum().float()


LOSSES = {"bce": bce_loss, "asl": asl_loss}
