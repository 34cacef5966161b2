"""Class-specific residual attention (CSRA): a feature map in, one logit per class out."""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The temperatures of the heads for each number of heads (paper, Sec. 3.3). ∞ is spatial max pooling.
TEMPERATURES: dict[int, tuple[float, ...]] = {
    1: (1,),
    2: (1, math.inf),
    4: (1, 2, 4, math.inf),
    6: (1, 2, 3, 4, 5, math.inf),
    8: (1, 2, 3, 4, 5, 6, 7, math.inf),
}


def attention(scores: Tensor, T: float) -> Tensor:
    """Return softmax_k(T · s_k) over the K positions of score maps (..., K) (Eq. 6).

    For T = ∞ the largest scores of a map share the attention equally.
    """
    if math.isinf(T):
        maxima = (scores == scores.amax(dim=-1, keepdim=True)).to(scores.dtype)
        return maxima / maxima.sum(dim=-1, keepdim=True)
    return torch.softmax(T * scores, dim=-1)


def attended_scores(scores: Tensor, T: float) -> Tensor:
    """Return the sum of score maps (..., K) over positions, weighted by attention (Eq. 6).

    For T = ∞ it is the maximum.
    """
    if math.isinf(T):
        return scores.amax(dim=-1)
    return (attention(scores, T) * scores).sum(dim=-1)


def residual_attention(scores: Tensor, T: float, lam: float) -> Tensor:
    """Pool score maps (B, C, K) into logits (B, C): spatial mean + λ · attended scores (Eq. 5-7)."""
    return scores.mean(dim=-1) + lam * attended_scores(scores, T)


def head_score_maps(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Return (m / ||m||) · x (Eq. 5) for the weights m (C, D, 1, 1) of each head and features x (B, D, H, W).

    Each result has shape (B, C, H, W).
    """
    unit_weights = [F.normalize(weight, dim=1) for weight in weights]
    # The convolution is a matrix product, one for all heads; as such it is faster with many classes. Under
    # autocast it runs in half precision, the rest stays in float32.
    all_scores = torch.matmul(torch.cat(unit_weights).flatten(1), x.flatten(2)).to(unit_weights[0].dtype)
    all_maps = all_scores.unflatten(2, x.shape[2:])
    return all_maps.chunk(len(weights), dim=1)


class ScoreMap(NamedTuple):
    """The scores of one head for every class at every place, (B, C, H, W), and the head's temperature."""

    scores: Tensor
    T: float


class ResidualAttention(nn.Module):
    """Base of the classifiers: features (B, D, H, W) -> logits (B, C). Subclasses define `score_maps`."""

    def __init__(self, lam: float):
        super().__init__()
        self.lam = lam

    def score_maps(self, x: Tensor) -> list[ScoreMap]:
        """Return a ScoreMap for each head."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Sum the logits of all heads (Eq. 8)."""
        first, *others = [residual_attention(s.flatten(2), T, self.lam) for s, T in self.score_maps(x)]
        return sum(others, start=first)

    def attention_maps(self, x: Tensor) -> Tensor:
        """Return the mean attention of the heads (B, C, H, W); each map sums to 1."""
        maps = [attention(scores.flatten(2), T).view_as(scores) for scores, T in self.score_maps(x)]
        return torch.stack(maps).mean(dim=0)


class CSRA(ResidualAttention):
    """One head of temperature T > 0; ∞, or 99 as in the released code, means max pooling."""

    def __init__(self, input_dim: int, num_classes: int, T: float, lam: float):
        super().__init__(lam)
        self.T = math.inf if T == 99 else T
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1, bias=False)

    def score_maps(self, x: Tensor) -> list[ScoreMap]:
        (scores,) = head_score_maps(x, [self.head.weight])
        return [ScoreMap(scores, self.T)]


class Head(nn.Module):
    """One head of MHA: its temperature and its convolution, which the released checkpoints call `head`."""

    def __init__(self, input_dim: int, num_classes: int, T: float):
        super().__init__()
        self.T = T
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1, bias=False)


class MHA(ResidualAttention):
    """Multi-head attention (Eq. 8): one head per temperature; num_heads: 1, 2, 4, 6 or 8, else ValueError."""

    def __init__(self, num_heads: int, lam: float, input_dim: int, num_classes: int):
        super().__init__(lam)
        if num_heads not in TEMPERATURES:
            raise ValueError(f"num_heads must be one of {', '.join(map(str, TEMPERATURES))}, not {num_heads}")
        self.multi_head = nn.ModuleList(Head(input_dim, num_classes, T) for T in TEMPERATURES[num_heads])

    def score_maps(self, x: Tensor) -> list[ScoreMap]:
        heads = cast(list[Head], list(self.multi_head))
        maps = head_score_maps(x, [head.head.weight for head in heads])
        return [ScoreMap(scores, head.T) for scores, head in zip(maps, heads)]


class AveragePooling(ResidualAttention):
    """The baseline: a linear classifier of the spatial mean; λ > 0 adds λ · max without training (Fig. 1)."""

    def __init__(self, lam: float, input_dim: int, num_classes: int):
        super().__init__(lam)
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1)

    def score_maps(self, x: Tensor) -> list[ScoreMap]:
        scores = self.head(x).to(self.head.weight.dtype)
        return [ScoreMap(scores, math.inf)]

    def attention_maps(self, x: Tensor) -> Tensor:
        """Return the class activation maps (B, C, H, W), which are the score maps."""
        (map_of_the_head,) = self.score_maps(x)
        return map_of_the_head.scores
