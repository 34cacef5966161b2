"""Batch norm folded into convolutions: the same logits, and nothing of the network changes."""

import pytest
import torch
from torch import nn

from pipeline import folding
from pipeline.folding import folded
from pipeline.models import build
from pipeline.network import Network
from small_networks import with_statistics

# How many batch norms stay in a network of each family: DenseNet has most of them before a convolution.
FAMILIES = {
    "resnet18": 0,
    "mobilenet_v2": 0,
    "densenet121": 62,
    "googlenet": 0,
    "inception_v3": 0,
    "efficientnet_b0": 0,
    "regnet_y_400mf": 0,
    "shufflenet_v2_x0_5": 0,
}

SLOW = ("densenet121", "googlenet", "inception_v3", "efficientnet_b0")


def random_network(model: str, normalization: str = "none") -> Network:
    torch.manual_seed(0)
    network = build(model, 2, 0.3, 5, 96)
    network.normalization = normalization
    return with_statistics(network)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES]
)
def test_a_folded_network_has_the_same_logits(model):
    network = random_network(model)
    fast = folded(network)
    images = torch.rand(2, 3, 96, 96).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert relative(fast(images), network(images)) < 1e-5
        assert relative(fast.features(images), network.features(images)) < 1e-5
    assert fast.classifier is network.classifier
    left = [module for module in fast.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == FAMILIES[model]


@pytest.mark.parametrize("model", ["convnext_tiny", "swin_t", "vit_B16_224"])
def test_a_network_without_batch_norm_stays_as_it_is(model):
    with torch.device("meta"):
        network = build(model, 1, 0.1, 5, 224).eval()
    assert folded(network) is network


def test_nothing_of_the_network_changes():
    network = random_network("resnet18")
    before = {name: values.clone() for name, values in network.state_dict().items()}
    random_state = torch.get_rng_state()
    folded(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not network.training


def test_logits_that_differ_keep_the_network(monkeypatch):
    network = random_network("resnet18")
    assert folded(network) is not network

    def wrong(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
        return conv

    monkeypatch.setattr(folding, "fuse_conv_bn_eval", wrong)
    assert folded(network) is network


def test_a_network_that_is_watched_or_compiled_stays_as_it_is():
    network = random_network("resnet18")
    hook = network.layer1.register_forward_hook(lambda *_: None)
    assert folded(network) is network
    hook.remove()
    network.compile()
    assert folded(network) is network
