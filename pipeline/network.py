"""The base class of the networks: images -> feature map -> logits."""

from torch import Tensor, nn

from pipeline.csra import MHA, AveragePooling


class Network(nn.Module):
    """Base of the networks, which define `features`, images to the last feature map, and `classifier`.

    mean, std: pixels are normalised to (pixel - mean) / std; the state dict does not hold them.
    """

    mean, std = 0.0, 1.0

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to logits (B, C)."""
        return self.classifier(self.features(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std."""
        return images if (self.mean, self.std) == (0, 1) else (images - self.mean) / self.std

    def adapt(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of torchvision or timm with the names and sizes of this network."""
        return state_dict


def make_classifier(num_heads: int, lam: float, input_dim: int, num_classes: int) -> MHA | AveragePooling:
    """Return a CSRA classifier, or average pooling for num_heads = 0."""
    if num_heads == 0:
        return AveragePooling(lam, input_dim, num_classes)
    return MHA(num_heads, lam, input_dim, num_classes)
