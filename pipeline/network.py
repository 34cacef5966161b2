"""The base class of the networks: images -> feature map -> logits."""

import re

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.csra import MHA, AveragePooling, ResidualAttention

MIN_SIDE = 33  # of images in pixels: 32 leave one place in the feature map
MAX_SIDE = 2**16  # sides must be below it; larger images would not fit in any memory
# Mean and std of red, green and blue for each name that --normalize takes; "none" leaves pixels in [0, 1], as
# in the paper; "imagenet" is what torchvision's and most other ImageNet weights were trained with. The last
# three are those of CLIP, of the Dual Path Networks and of DINOv3's weights for satellite images.
NORMALIZATION = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (0.2348247, 0.2348247, 0.2348247)),
    "sat493m": ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
}


class Network(nn.Module):
    """Base of the networks. A subclass defines `features` and `classifier`.

    normalization: a key of NORMALIZATION, which `features` applies; the state dict does not hold it.
    """

    normalization = "none"
    classifier: ResidualAttention

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to the last feature map (B, D, h, w)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to logits (B, C)."""
        return self.classifier(self.features(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std of images (B, 3, H, W), in the memory order of channels_last."""
        if self.normalization == "none":
            return images
        means, stds = NORMALIZATION[self.normalization]
        # Numbers, unlike tensors, need no copy to the GPU in each step and no place in the state dict.
        # torch.fx can trace images[:, c], but not a loop over images.unbind(1).
        planes = [(images[:, c] - means[c]) / stds[c] for c in range(3)]
        return torch.stack(planes, dim=3).permute(0, 3, 1, 2)

    def adapt(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict of torchvision or timm to this network's names and sizes."""
        return state_dict

    def share_batch_statistics(self) -> None:
        """Let each batch norm compute its statistics over all processes."""
        for name, child in list(self.named_children()):
            self.add_module(name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def has_map_of_one_place(network: Network, img_size: int) -> bool:
    """Return whether a batch norm gets one value per channel of an image, so that it cannot train on one.

    img_size: side of the images in pixels.
    """
    places = []

    def record_places(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        places.append(inputs[0].numel() // norm.num_features)

    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(record_places) for norm in norms]
    was_training = network.training
    image = torch.zeros(1, 3, img_size, img_size, device=next(network.parameters()).device)
    with torch.inference_mode():
        network.eval().features(image)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return 1 in places


def rename(state_dict: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Return a state dict in which the start of each name is replaced; `names`: {pattern: replacement}."""
    for pattern, ours in names.items():
        state_dict = {re.sub(f"^{pattern}", ours, key): value for key, value in state_dict.items()}
    return state_dict


def make_classifier(num_heads: int, lam: float, input_dim: int, num_classes: int) -> MHA | AveragePooling:
    """Return a CSRA classifier, or average pooling for num_heads = 0."""
    if num_heads == 0:
        return AveragePooling(lam, input_dim, num_classes)
    return MHA(num_heads, lam, input_dim, num_classes)
