"""A small network, and weights of a small vision transformer: quick to build, to run and to compile."""

import torch
from torch import Tensor, nn

from pipeline.network import Network, make_classifier

LAYERS, HEADS, WIDTH, INNER = 2, 2, 8, 16  # of the vision transformer


class SmallNetwork(Network):
    """A convolution, batch norm and ReLU: torch.compile takes seconds for each layer."""

    def __init__(self, num_heads: int, lam: float, num_cls: int, has_norm: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(8) if has_norm else nn.Identity()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())
        self.classifier = make_classifier(num_heads, lam, 8, num_cls)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(self.normalize(images))


def timm_weights(grid: int, num_classes: int = 3) -> dict[str, Tensor]:
    """Return a random state dict of the small network with timm's names, which released checkpoints use."""
    generator = torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 3

    state = {
        "cls_token": random(1, 1, WIDTH),
        "pos_embed": random(1, 1 + grid**2, WIDTH),
        "patch_embed.proj.weight": random(WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": random(WIDTH),
    }
    for i in range(LAYERS):
        for name, shape in {
            "norm1": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,),
            "mlp.fc1": (INNER, WIDTH),
            "mlp.fc2": (WIDTH, INNER),
        }.items():
            state |= {
                f"blocks.{i}.{name}.weight": random(*shape),
                f"blocks.{i}.{name}.bias": random(shape[0]),
            }
    state |= {"norm.weight": random(WIDTH), "norm.bias": random(WIDTH)}
    return state | {"classifier.multi_head.0.head.weight": random(num_classes, WIDTH, 1, 1)}


def with_statistics(network: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights as after training, and return the network in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(values, low, high)
    return network.eval()
