"""A torchvision ResNet trunk with a CSRA classifier."""

import torchvision
from torch import Tensor, nn

from pipeline.csra import make_head

DEPTHS = (18, 34, 50, 101, 152)
TRUNK = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class ResNet_CSRA(nn.Module):
    """ResNet without its average pooling and fc, followed by multi-head CSRA as `classifier`.

    The state dict has torchvision's names plus `classifier.multi_head.{i}.head.weight (C, D, 1, 1)`.
    num_heads: 1, 2, 4, 6 or 8; 0 is the plain baseline, average pooling, as `classifier.head`.
    depth: 18, 34, 50, 101 or 152, else ValueError. Weights start random; nothing is downloaded.
    """

    def __init__(self, num_heads: int, lam: float, num_classes: int, depth: int = 101):
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, not {depth}")
        resnet = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        for name in TRUNK:
            self.add_module(name, getattr(resnet, name))
        self.classifier = make_head(num_heads, lam, resnet.fc.in_features, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, D, H/32, W/32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, images: Tensor) -> Tensor:
        """Float images (B, 3, H, W) to logits (B, C)."""
        return self.classifier(self.features(images))

    def adapt(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict: a ResNet's names are torchvision's everywhere."""
        return state_dict


def read_depth(state_dict: dict[str, Tensor]) -> int:
    """Return the depth of the ResNet that a state dict is of; ValueError where it is of none."""
    # layer3 and the third convolution of a bottleneck block tell the depths apart.
    blocks = len({k.split(".")[1] for k in state_dict if k.startswith("layer3.")})
    bottleneck = "layer1.0.conv3.weight" in state_dict
    depths = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
    if (blocks, bottleneck) not in depths:
        raise ValueError(f"its trunk is no ResNet-{', '.join(map(str, DEPTHS))} ({blocks} blocks in layer3)")
    return depths[blocks, bottleneck]
