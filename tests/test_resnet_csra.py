"""Compare the ResNets with torchvision's, and their state dicts with the names of released checkpoints."""

import pytest
import torch
import torchvision

from pipeline.models import read_architecture
from pipeline.resnet_csra import DEPTHS, ResNet_CSRA


def test_the_trunk_equals_torchvisions():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None).eval()
    model = ResNet_CSRA(1, 0.1, 5, depth=18).eval()
    state = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    assert list(model.state_dict()) == [*state, "classifier.multi_head.0.head.weight"]
    model.load_state_dict(state, strict=False)

    features = {}
    resnet.layer4.register_forward_hook(lambda module, args, output: features.update(layer4=output))
    images = torch.rand(2, 3, 64, 96)
    resnet(images)
    torch.testing.assert_close(model.features(images), features["layer4"], rtol=0, atol=0)
    assert model(images).shape == (2, 5)


@pytest.mark.parametrize("depth", DEPTHS.values())
@pytest.mark.parametrize("num_heads", [1, 6])
def test_read_architecture_recognises_every_resnet(depth, num_heads):
    with torch.device("meta"):
        state = ResNet_CSRA(num_heads, 0.1, 20, depth).state_dict()
    held = {"model": f"resnet{depth}", "num_heads": num_heads, "num_cls": 20, "img_size": None}
    assert read_architecture(state) == held


def test_the_default_is_resnet101():
    with torch.device("meta"):
        assert read_architecture(ResNet_CSRA(1, 0.1, 20).state_dict())["model"] == "resnet101"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "no CSRA head"),
        (torchvision.models.resnet18(weights=None).state_dict(), "no CSRA head.*--backbone_weights"),
        ({"classifier.multi_head.0.head.weight": torch.zeros(3, 8, 1, 1)}, "not a ResNet"),
        (
            {f"classifier.multi_head.{i}.head.weight": torch.zeros(3, 8, 1, 1) for i in range(3)},
            "3 CSRA heads",
        ),
        ({"classifier.multi_head.0.head.weight": torch.tensor(1.0)}, "1 CSRA head"),
    ],
)
def test_other_state_dicts_are_refused(state, says):
    with pytest.raises(ValueError, match=says):
        read_architecture(state)


def test_an_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="18, 34, 50, 101, 152"):
        ResNet_CSRA(1, 0.1, 5, depth=20)


def test_every_parameter_gets_a_gradient():
    model = ResNet_CSRA(4, 0.1, 5, depth=18)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_building_never_downloads(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("utils.weights.downloads.download", refuse)
    ResNet_CSRA(1, 0.1, 5, depth=18)
