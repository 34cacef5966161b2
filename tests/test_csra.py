"""Compare the head with the paper's equations, written out here class by class."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.csra import CSRA, MHA, TEMPERATURES, AveragePooling, attention, residual_attention
from utils.inference.sweep import logit_terms

LAM = 0.3


def equations(x: torch.Tensor, weights: list[torch.Tensor], temperatures: list[float], lam: float):
    """Return Eq. 5-8, for one class, image and head at a time: x (B, D, H, W), weights of (C, D, 1, 1)."""
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
def test_forward_and_gradient_follow_the_equations(num_heads):
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


def test_temperatures_follow_the_paper():
    inf = math.inf
    assert dict(TEMPERATURES) == {
        1: (1,),
        2: (1, inf),
        4: (1, 2, 4, inf),
        6: (1, 2, 3, 4, 5, inf),
        8: (1, 2, 3, 4, 5, 6, 7, inf),
    }


@pytest.mark.parametrize("T", [1, 2.5, math.inf, 99])
def test_one_head_follows_the_equations(T):
    head = CSRA(5, 2, T, LAM).double()
    x = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    expected = equations(x, [head.head.weight], [math.inf if T == 99 else T], LAM)
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-12)


def test_lam_0_is_average_pooling():
    head = CSRA(5, 2, T=1, lam=0)
    x = torch.randn(3, 5, 2, 2)
    torch.testing.assert_close(head(x), F.linear(x.mean((2, 3)), F.normalize(head.head.weight.flatten(1))))


def test_state_dict_holds_one_weight_per_head():
    state = MHA(4, LAM, 7, 3).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        f"multi_head.{i}.head.weight": (3, 7, 1, 1) for i in range(4)
    }


def test_all_heads_share_one_matrix_product(monkeypatch):
    calls = []
    matmul = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda *args: calls.append(1) or matmul(*args))
    MHA(6, LAM, 7, 3)(torch.randn(2, 7, 4, 4))
    assert len(calls) == 1


@pytest.mark.parametrize("num_heads", [0, 3, 7])
def test_other_numbers_of_heads_are_refused(num_heads):
    with pytest.raises(ValueError, match="1, 2, 4, 6, 8"):
        MHA(num_heads, LAM, 7, 3)


def test_attention_maps_are_the_mean_attention_of_the_heads():
    head = MHA(2, LAM, input_dim=5, num_classes=3).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    maps = head.attention_maps(x)
    assert maps.shape == (2, 3, 3, 4)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3, dtype=torch.float64))
    for b in range(2):
        for c in range(3):
            s = [F.normalize(h.head.weight[c, :, 0, 0], dim=0) @ x[b].flatten(1) for h in head.multi_head]
            softmax = torch.exp(s[0]) / torch.exp(s[0]).sum()
            maximum = torch.eye(12, dtype=torch.float64)[s[1].argmax()]
            torch.testing.assert_close(maps[b, c].flatten(), (softmax + maximum) / 2)


def test_equal_maxima_share_the_attention():
    assert attention(torch.tensor([1.0, 3.0, 3.0]), math.inf).tolist() == [0, 0.5, 0.5]


def test_logits_are_pooled_with_the_attention():
    scores = torch.randn(2, 3, 7, dtype=torch.float64)
    for T in (1, 3, math.inf):
        pooled = scores.mean(-1) + LAM * (attention(scores, T) * scores).sum(-1)
        torch.testing.assert_close(residual_attention(scores, T, LAM), pooled)


def test_the_baseline_classifies_the_mean_and_lam_adds_the_maximum():
    head = AveragePooling(0, 5, 3).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    linear = F.linear(x.mean((2, 3)), head.head.weight.flatten(1), head.head.bias)
    torch.testing.assert_close(head(x), linear)
    head.lam = LAM
    places = torch.stack(
        [F.linear(p, head.head.weight.flatten(1), head.head.bias) for p in x.flatten(2).permute(2, 0, 1)]
    )
    torch.testing.assert_close(head(x), linear + LAM * places.amax(0))
    assert head.attention_maps(x).shape == (2, 3, 3, 4)
    torch.testing.assert_close(head.attention_maps(x).mean((2, 3)), linear)


@pytest.mark.parametrize("num_heads", [0, 1, 4])
def test_logit_terms_give_the_logits_for_any_lam_and_temperature(num_heads):
    head = MHA(num_heads, LAM, 5, 3) if num_heads else AveragePooling(LAM, 5, 3)
    x = torch.randn(2, 5, 3, 4)
    model = SimpleNamespace(features=torch.nn.Identity(), classifier=head)
    terms = logit_terms(model, x, [None, 2, math.inf])
    assert terms.shape == (2, 4, 3)
    torch.testing.assert_close(terms[:, 0] + LAM * terms[:, 1], head(x))
    for i, T in ((2, 2), (3, math.inf)):
        maps = [scores.flatten(2) for scores, _ in head.score_maps(x)]
        expected = sum(residual_attention(s, T, 0.7) for s in maps)
        torch.testing.assert_close(terms[:, 0] + 0.7 * terms[:, i], expected)


def test_large_scores_stay_finite():
    head = MHA(8, LAM, 4, 2)
    assert np.isfinite(head(1e4 * torch.randn(2, 4, 3, 3)).detach().numpy()).all()
