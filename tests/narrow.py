"""A ResNet-18 with an eighth of the channels: the same layers and names, small files, short steps."""

import torch
import torchvision
from torch import nn

WIDE = torchvision.models.resnet18


def narrow_resnet18(weights: None = None) -> nn.Module:
    """Return it with random weights, drawn as torchvision draws them."""
    with torch.device("meta"):
        network = WIDE(weights=weights)
    for name, module in list(network.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            setattr(network.get_submodule(parent), child, narrow_convolution(module))
        elif isinstance(module, nn.BatchNorm2d):
            setattr(network.get_submodule(parent), child, nn.BatchNorm2d(module.num_features // 8))
    network.fc = nn.Linear(network.fc.in_features // 8, network.fc.out_features)
    return network


def narrow_convolution(wide: nn.Conv2d) -> nn.Conv2d:
    num_in = 3 if wide.in_channels == 3 else wide.in_channels // 8
    size = {"kernel_size": wide.kernel_size, "stride": wide.stride, "padding": wide.padding}
    narrow = nn.Conv2d(num_in, wide.out_channels // 8, bias=False, **size)
    nn.init.kaiming_normal_(narrow.weight, mode="fan_out", nonlinearity="relu")
    return narrow


def use_narrow_resnet18() -> None:
    """Let every resnet18 of this process be a narrow one."""
    torchvision.models.resnet18 = narrow_resnet18
