"""A torchvision ResNet trunk with a CSRA classifier."""

import torchvision
from torch import Tensor, nn

from pipeline.network import Network, make_classifier

# (number of blocks in layer3, whether they are bottlenecks) -> depth, to read the depth off a state dict.
DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
TRUNK = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class ResNet_CSRA(Network):
    """ResNet without its average pooling and fc, followed by multi-head CSRA as `classifier`.

    The state dict has torchvision's names plus `classifier.multi_head.{i}.head.weight (C, D, 1, 1)`.
    num_heads: 1, 2, 4, 6 or 8; 0 is average pooling. depth: a value of DEPTHS. Weights start random.
    """

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, num_heads: int, lam: float, num_classes: int, depth: int = 101):
        super().__init__()
        if depth not in DEPTHS.values():
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS.values()))}, not {depth}")
        resnet = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        for name in TRUNK:
            self.add_module(name, getattr(resnet, name))
        self.classifier = make_classifier(num_heads, lam, resnet.fc.in_features, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to the last feature map (B, D, H/32, W/32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(images)))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def read_depth(state_dict: dict[str, Tensor]) -> int:
    """Return the depth of the ResNet that a state dict belongs to; ValueError if it fits none."""
    num_blocks = len({key.split(".")[1] for key in state_dict if key.startswith("layer3.")})
    kind = (num_blocks, "layer1.0.conv3.weight" in state_dict)
    if kind not in DEPTHS:
        raise ValueError(f"its trunk is not a ResNet that is known here: layer3 has {num_blocks} blocks")
    return DEPTHS[kind]
