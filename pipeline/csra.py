"""Class-specific residual attention (CSRA): a feature map in, one logit per class out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Temperatures of the heads by their number (paper, Sec. 3.3). ∞ is spatial max pooling.
TEMPERATURES: dict[int, tuple[float, ...]] = {
    1: (1,),
    2: (1, math.inf),
    4: (1, 2, 4, math.inf),
    6: (1, 2, 3, 4, 5, math.inf),
    8: (1, 2, 3, 4, 5, 6, 7, math.inf),
}


def attention(scores: Tensor, T: float) -> Tensor:
    """Return softmax_k(T · s_k) over the positions of score maps (..., K) (Eq. 6); T = ∞ takes the maxima."""
    if math.isinf(T):
        maxima = (scores == scores.amax(dim=-1, keepdim=True)).to(scores.dtype)
        return maxima / maxima.sum(dim=-1, keepdim=True)
    return torch.softmax(T * scores, dim=-1)


def attended_scores(scores: Tensor, T: float) -> Tensor:
    """Sum score maps (..., K) over positions, weighted by attention (Eq. 6); for T = ∞ take the maximum."""
    return scores.amax(dim=-1) if math.isinf(T) else (attention(scores, T) * scores).sum(dim=-1)


def residual_attention(scores: Tensor, T: float, lam: float) -> Tensor:
    """Pool score maps (B, C, K) into logits (B, C): spatial mean + λ · attended scores (Eq. 5-7)."""
    return scores.mean(dim=-1) + lam * attended_scores(scores, T)


class ResidualAttention(nn.Module):
    """Base of the classifiers: features (B, D, H, W) -> logits (B, C), for λ = `lam`."""

    def score_maps(self, x: Tensor) -> list[tuple[Tensor, float]]:
        """Return each head's score maps (m / ||m||) · x (Eq. 5), (B, C, H, W), and its temperature."""
        heads = [module for module in self.modules() if isinstance(module, CSRA)]
        weights = [F.normalize(head.head.weight, dim=1) for head in heads]
        # One convolution for all heads. Under autocast it runs in half precision, the rest stays in float32.
        maps = F.conv2d(x, torch.cat(weights)).to(weights[0].dtype).chunk(len(weights), dim=1)
        return [(scores, head.T) for scores, head in zip(maps, heads)]

    def forward(self, x: Tensor) -> Tensor:
        """Sum the logits of all heads (Eq. 8)."""
        return sum(residual_attention(scores.flatten(2), T, self.lam) for scores, T in self.score_maps(x))

    def attention_maps(self, x: Tensor) -> Tensor:
        """Return the mean attention of the heads (B, C, H, W); each map sums to 1."""
        maps = [attention(scores.flatten(2), T).view_as(scores) for scores, T in self.score_maps(x)]
        return torch.stack(maps).mean(dim=0)


class CSRA(ResidualAttention):
    """One head of temperature T > 0; ∞, or 99 as in the released code, means max pooling."""

    def __init__(self, input_dim: int, num_classes: int, T: float, lam: float):
        super().__init__()
        self.T, self.lam = math.inf if T == 99 else T, lam
        # The released checkpoints call it `head`.
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1, bias=False)


class MHA(ResidualAttention):
    """Multi-head attention (Eq. 8): one head per temperature; num_heads: 1, 2, 4, 6 or 8, else ValueError."""

    def __init__(self, num_heads: int, lam: float, input_dim: int, num_classes: int):
        super().__init__()
        if num_heads not in TEMPERATURES:
            raise ValueError(f"num_heads must be one of {', '.join(map(str, TEMPERATURES))}, not {num_heads}")
        self.lam = lam
        self.multi_head = nn.ModuleList(CSRA(input_dim, num_classes, T, lam) for T in TEMPERATURES[num_heads])


class AveragePooling(ResidualAttention):
    """The baseline: a linear classifier of the spatial mean; λ > 0 adds λ · max without training (Fig. 1)."""

    def __init__(self, lam: float, input_dim: int, num_classes: int):
        super().__init__()
        self.lam = lam
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1)

    def score_maps(self, x: Tensor) -> list[tuple[Tensor, float]]:
        return [(self.head(x).to(self.head.weight.dtype), math.inf)]

    def attention_maps(self, x: Tensor) -> Tensor:
        """Return the class activation maps (B, C, H, W), which are the score maps."""
        return self.score_maps(x)[0][0]
