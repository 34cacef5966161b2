"""The head against the paper's equations, written out here class by class."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.csra import CSRA, MHA, TEMPERATURES

LAM = 0.3


def equations(x: torch.Tensor, weights: list[torch.Tensor], temperatures: list[float], lam: float):
    """Eq. 5-8 for one class, one image, one head at a time: x (B, D, H, W), weights of (C, D, 1, 1)."""
    logits = torch.zeros(len(x), len(weights[0]), dtype=x.dtype)
    for b in range(len(x)):
        for c in range(len(weights[0])):
            for weight, T in zip(weights, temperatures):
                m = weight[c, :, 0, 0]
                m = m / (m * m).sum().sqrt()
                s = torch.stack([(m * place).sum() for place in x[b].flatten(1).T])
                base = s.sum() / len(s)
                if math.isinf(T):
                    attention = s.max()
                else:
                    e = torch.exp(T * s)
                    attention = (e / e.sum() * s).sum()
                logits[b, c] = logits[b, c] + base + lam * attention
    return logits


@pytest.mark.parametrize("num_heads", TEMPERATURES)
def test_forward_and_gradient_are_the_papers(num_heads):
    torch.manual_seed(num_heads)
    head = MHA(num_heads, LAM, input_dim=7, num_classes=3).double()
    x = torch.randn(2, 7, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = [h.head.weight for h in head.multi_head]
    probe = torch.randn(2, 3, dtype=torch.float64)

    logits, expected = head(x), equations(x, weights, TEMPERATURES[num_heads], LAM)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    ours = torch.autograd.grad((logits * probe).sum(), [x, *weights])
    theirs = torch.autograd.grad((expected * probe).sum(), [x, *weights])
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_temperatures_are_the_papers():
    inf = math.inf
    assert dict(TEMPERATURES) == {
        1: (1,),
        2: (1, inf),
        4: (1, 2, 4, inf),
        6: (1, 2, 3, 4, 5, inf),
        8: (1, 2, 3, 4, 5, 6, 7, inf),
    }


@pytest.mark.parametrize("T", [1, 2.5, math.inf, 99])
def test_one_head_alone(T):
    head = CSRA(5, 2, T, LAM).double()
    x = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    expected = equations(x, [head.head.weight], [math.inf if T == 99 else T], LAM)
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-12)


def test_without_attention_it_is_average_pooling():
    head = CSRA(5, 2, T=1, lam=0)
    x = torch.randn(3, 5, 2, 2)
    torch.testing.assert_close(head(x), F.linear(x.mean((2, 3)), F.normalize(head.head.weight.flatten(1))))


def test_state_dict_has_a_weight_per_head_and_nothing_else():
    state = MHA(4, LAM, 7, 3).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        f"multi_head.{i}.head.weight": (3, 7, 1, 1) for i in range(4)
    }


def test_all_heads_cost_one_convolution(monkeypatch):
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: calls.append(1) or conv2d(*args, **kwargs))
    MHA(6, LAM, 7, 3)(torch.randn(2, 7, 4, 4))
    assert len(calls) == 1


@pytest.mark.parametrize("num_heads", [0, 3, 7])
def test_other_numbers_of_heads_are_refused(num_heads):
    with pytest.raises(ValueError, match="1, 2, 4, 6, 8"):
        MHA(num_heads, LAM, 7, 3)


def test_large_scores_stay_finite():
    head = MHA(8, LAM, 4, 2)
    assert np.isfinite(head(1e4 * torch.randn(2, 4, 3, 3)).detach().numpy()).all()
