"""Batch norm folded into the convolutions before it: the same logits from fewer operations, for inference."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.csra import ResidualAttention
from pipeline.network import Network

TOLERANCE = 1e-5  # largest difference of the logits, as a share of their size
CHECK_SIDE = 96  # pixels of the image for which they are compared; Inception needs 75
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# timm's convolution that pads as TensorFlow does, and its batch norm with dropout and activation.
TIMM_CONVOLUTION = "Conv2dSame"
TIMM_BATCH_NORM = "BatchNormAct2d"


class Tracer(fx.Tracer):
    """Follows the calls of a network down to the modules that hold no batch norm of their own."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Return whether a module's own calls stay out of the graph."""
        parts = (part for part in module.modules() if part is not module)
        return not any(isinstance(part, BATCH_NORMS) for part in parts)


class FoldedNetwork(Network):
    """A network for inference: `trunk` computes the features, and the classifier is another network's own."""

    def __init__(self, trunk: nn.Module, classifier: ResidualAttention):
        super().__init__()
        self.trunk = trunk
        self.classifier = classifier

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to the last feature map (B, D, h, w)."""
        return self.trunk(images)


class Features(nn.Module):
    """The features of a network as a module, which torch.fx can trace."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def folded(network: Network) -> Network:
    """Return a network with the same logits that computes them faster, for inference.

    network: in eval mode; it does not change. The result holds copies of the convolutions that it folds, and
    shares all else, such as the classifier, with `network`. It does not follow later changes of the weights
    before the classifier: fold again after them.
    Returns `network` itself if it has no batch norm to fold, if it has hooks or is compiled, because a folded
    network would be neither, if torch.fx cannot trace it, or if the logits differ by more than TOLERANCE.
    """
    if is_hooked(network) or network._compiled_call_impl is not None:
        return network
    try:
        trunk = fold_trunk(network)
        if trunk is None:
            return network
        result = FoldedNetwork(trunk, network.classifier).eval()
        return result if difference_of_logits(result, network) <= TOLERANCE else network
    except Exception:  # noqa: BLE001  torch.fx, and networks of other packages, raise errors of any kind
        return network


def is_hooked(network: nn.Module) -> bool:
    """Return whether hooks watch or change what the modules of a network compute."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@torch.no_grad()
def fold_trunk(network: Network) -> nn.Module | None:
    """Return a module that computes a network's features without the batch norms that can be folded.

    Returns None if there is none. The module shares all parts but folded convolutions with the network.
    """
    if not any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        return None
    features = Features(network).eval()
    trunk = fx.GraphModule(features, Tracer().trace(features))
    pairs = pairs_to_fold(trunk)
    if not pairs:
        return None
    for conv, norm in pairs:
        modules: Any = trunk.get_submodule(conv), trunk.get_submodule(norm)
        trunk.set_submodule(conv, fuse_conv_bn_eval(*modules))
        trunk.set_submodule(norm, after_norm(trunk.get_submodule(norm)))
    return trunk


def pairs_to_fold(trunk: fx.GraphModule) -> list[tuple[str, str]]:
    """Return the paths of (convolution, batch norm) that can become one."""
    modules = dict(trunk.named_modules())
    calls = [node for node in trunk.graph.nodes if node.op == "call_module"]
    num_calls = Counter(node.target for node in calls)
    pairs = []
    for norm in calls:
        if not has_statistics(modules[norm.target]) or num_calls[norm.target] > 1:
            continue
        conv = norm.args[0]
        if conv.op != "call_module" or num_calls[conv.target] > 1:
            continue
        if is_convolution(modules[conv.target]) and len(conv.users) == 1:  # nothing else uses its output
            pairs.append((conv.target, norm.target))
    return pairs


def is_convolution(module: nn.Module) -> bool:
    """Return whether a module is a convolution, and no subclass that computes its weights."""
    return type(module) in CONVOLUTIONS or is_of_timm(module, TIMM_CONVOLUTION)


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module is a batch norm, and no unknown subclass, with known statistics."""
    is_norm = type(module) in BATCH_NORMS or is_of_timm(module, TIMM_BATCH_NORM)
    return is_norm and module.running_mean is not None


def is_of_timm(module: nn.Module, name: str) -> bool:
    """Return whether a module is timm's layer of this name; timm need not be installed."""
    return type(module).__name__ == name and type(module).__module__.startswith("timm.")


def after_norm(norm: Any) -> nn.Module:
    """Return what a batch norm does besides: nothing, or in timm's case dropout and an activation."""
    if is_of_timm(norm, TIMM_BATCH_NORM):
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()


@torch.inference_mode()
def difference_of_logits(network: Network, expected: Network) -> float:
    """Return by how much the logits of two networks differ for a random image, as a share of their size."""
    parameter = next(expected.parameters())
    pixels = torch.rand(1, 3, CHECK_SIDE, CHECK_SIDE, generator=torch.Generator().manual_seed(0))
    image = pixels.to(parameter)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 rounds the two differently
        logits = expected(image)
        return float((network(image) - logits).norm() / logits.norm())
