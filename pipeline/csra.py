"""Class-specific residual attention: a feature map in, one logit per class out."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Temperatures of the heads by their number (paper, Sec. 3.3); ∞ stands for spatial max pooling.
TEMPERATURES: dict[int, tuple[float, ...]] = {
    1: (1,),
    2: (1, math.inf),
    4: (1, 2, 4, math.inf),
    6: (1, 2, 3, 4, 5, math.inf),
    8: (1, 2, 3, 4, 5, 6, 7, math.inf),
}


def residual_attention(scores: Tensor, T: float, lam: float) -> Tensor:
    """Pool score maps into logits: the spatial mean plus λ times the attention-weighted sum (paper, Eq. 5-7).

    scores: (B, C, K), the score of each class at each of K places. T: temperature > 0; ∞ takes the maximum.
    lam: λ ≥ 0. Returns logits (B, C).
    """
    if math.isinf(T):
        attended = scores.amax(dim=-1)
    else:
        attended = (torch.softmax(T * scores, dim=-1) * scores).sum(dim=-1)
    return scores.mean(dim=-1) + lam * attended


class CSRA(nn.Module):
    """One head: a 1x1 classifier with unit-norm weights, pooled by residual attention.

    T: temperature > 0; ∞, or 99 as the released code writes it, means max pooling.
    """

    def __init__(self, input_dim: int, num_classes: int, T: float, lam: float):
        super().__init__()
        self.T = math.inf if T == 99 else T
        self.lam = lam
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D, H, W) to logits (B, C)."""
        return csra_logits(x, [self])


class MHA(nn.Module):
    """Multi-head attention (paper, Eq. 8): the summed logits of CSRA heads, one per temperature.

    num_heads: 1, 2, 4, 6 or 8, else ValueError.
    """

    def __init__(self, num_heads: int, lam: float, input_dim: int, num_classes: int):
        super().__init__()
        if num_heads not in TEMPERATURES:
            raise ValueError(f"num_heads must be one of {', '.join(map(str, TEMPERATURES))}, not {num_heads}")
        self.multi_head = nn.ModuleList(CSRA(input_dim, num_classes, T, lam) for T in TEMPERATURES[num_heads])

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D, H, W) to logits (B, C)."""
        return csra_logits(x, self.multi_head)


def csra_logits(x: Tensor, heads: Iterable[CSRA]) -> Tensor:
    """Sum the logits (B, C) of heads over features x (B, D, H, W), with one convolution for all of them."""
    # Scores are (m / ||m||) · x (paper, Eq. 5): the unit-norm rows of all heads make one kernel.
    weights = [F.normalize(head.head.weight, dim=1) for head in heads]
    # Under autocast the convolution runs in lower precision; the normalisation and the pooling do not.
    scores = F.conv2d(x, torch.cat(weights)).to(weights[0].dtype).flatten(2).chunk(len(weights), dim=1)
    return sum(residual_attention(s, head.T, head.lam) for s, head in zip(scores, heads))
