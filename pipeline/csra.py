"""Class-specific residual attention: a feature map in, one logit per class out."""

import math
from collections.abc import Iterable, Sequence

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


def attention(scores: Tensor, T: float) -> Tensor:
    """Weigh the places by a class's own scores, softmax_k(T · s_k) (paper, Eq. 6); T = ∞ takes the maximum.

    scores: (..., K). Returns (..., K), which sums to 1 over the places; equal maxima share.
    """
    if math.isinf(T):
        highest = (scores == scores.amax(dim=-1, keepdim=True)).to(scores.dtype)
        return highest / highest.sum(dim=-1, keepdim=True)
    return torch.softmax(T * scores, dim=-1)


def attended(scores: Tensor, T: float) -> Tensor:
    """Sum scores (..., K) over the places, as `attention` weighs them; for T = ∞ that is their maximum."""
    return scores.amax(dim=-1) if math.isinf(T) else (attention(scores, T) * scores).sum(dim=-1)


def residual_attention(scores: Tensor, T: float, lam: float) -> Tensor:
    """Pool score maps into logits: the spatial mean plus λ times the attention-weighted sum (paper, Eq. 5-7).

    scores: (B, C, K), the score of each class at each of K places. T: temperature > 0; ∞ takes the maximum.
    lam: λ ≥ 0. Returns logits (B, C).
    """
    return scores.mean(dim=-1) + lam * attended(scores, T)


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

    def score_maps(self, x: Tensor) -> list[tuple[Tensor, float]]:
        """Features (B, D, H, W) to the score maps (B, C, H, W) of each head, with its temperature."""
        return [(scores, head.T) for scores, head in zip(csra_scores(x, self.multi_head), self.multi_head)]

    def attention_maps(self, x: Tensor) -> Tensor:
        """Features (B, D, H, W) to where each class is seen (B, C, H, W): the mean attention of the heads.

        It sums to 1 over the places. The logit counts every head alike, and so does the mean.
        """
        maps = [attention(scores.flatten(2), T).view_as(scores) for scores, T in self.score_maps(x)]
        return torch.stack(maps).mean(dim=0)


class AveragePooling(nn.Module):
    """The plain baseline: a linear classifier of the spatial mean. λ adds attention without training.

    lam: λ ≥ 0, 0 in training. λ > 0 adds λ times the maximum of a class's score map (paper, Fig. 1).
    """

    def __init__(self, lam: float, input_dim: int, num_classes: int):
        super().__init__()
        self.lam = lam
        self.head = nn.Conv2d(input_dim, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D, H, W) to logits (B, C)."""
        [(scores, T)] = self.score_maps(x)
        return residual_attention(scores.flatten(2), T, self.lam)

    def score_maps(self, x: Tensor) -> list[tuple[Tensor, float]]:
        """Features (B, D, H, W) to the score maps (B, C, H, W), with the temperature ∞."""
        return [(self.head(x).to(self.head.weight.dtype), math.inf)]

    def attention_maps(self, x: Tensor) -> Tensor:
        """Features (B, D, H, W) to the class activation maps (B, C, H, W), which are the score maps."""
        return self.score_maps(x)[0][0]


def make_head(num_heads: int, lam: float, input_dim: int, num_classes: int) -> MHA | AveragePooling:
    """Return the classifier of a network: CSRA, or the plain baseline for num_heads = 0."""
    if num_heads == 0:
        return AveragePooling(lam, input_dim, num_classes)
    return MHA(num_heads, lam, input_dim, num_classes)


def csra_scores(x: Tensor, heads: Iterable[CSRA]) -> tuple[Tensor, ...]:
    """Return the score maps (B, C, H, W) of each head over features x (B, D, H, W), from one convolution."""
    # Scores are (m / ||m||) · x (paper, Eq. 5): the unit-norm rows of all heads make one kernel.
    weights = [F.normalize(head.head.weight, dim=1) for head in heads]
    # Under autocast the convolution runs in lower precision; the normalisation and the pooling do not.
    return F.conv2d(x, torch.cat(weights)).to(weights[0].dtype).chunk(len(weights), dim=1)


def csra_logits(x: Tensor, heads: Iterable[CSRA]) -> Tensor:
    """Sum the logits (B, C) of heads over features x (B, D, H, W)."""
    maps = zip(csra_scores(x, heads), heads)
    return sum(residual_attention(scores.flatten(2), head.T, head.lam) for scores, head in maps)


def logit_terms(
    classifier: MHA | AveragePooling, x: Tensor, temperatures: Sequence[float | None] = (None,)
) -> Tensor:
    """Return what logits are made of, for any λ at once: the mean scores, and the attended ones for each T.

    x: features (B, D, H, W). temperatures: one for all heads each time; None: the heads' own.
    Returns (B, 1 + len(temperatures), C), summed over the heads: logits for λ are the first plus λ times
    another. Neither λ nor T changes the score maps, so they take no training (paper, Fig. 1).
    """
    maps = [(scores.flatten(2), T) for scores, T in classifier.score_maps(x)]
    terms = [sum(scores.mean(dim=-1) for scores, _ in maps)]
    for wanted in temperatures:
        terms.append(sum(attended(scores, T if wanted is None else wanted) for scores, T in maps))
    return torch.stack(terms, dim=1)
