"""Any model of timm that ends in a feature map, with CSRA in place of its pooling and classifier.

timm is optional: it is imported where a model whose name starts with `timm:` is used.
"""

import contextlib
import difflib
import functools
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.network import NORMALIZATION, Network, make_classifier

PREFIX = "timm:"  # of a model's name
# timm's networks raise these for images of a size that they do not take, and for options that do not fit.
TIMM_ERRORS = (
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
)


@dataclass(frozen=True)
class Layout:
    """The form of the feature map that timm's `forward_features` returns for a model.

    kind: "NCHW", "NHWC" or "tokens" (B, prefix + h * w, D). width: D. num_prefix: class and register tokens.
    used: the names of the parameters that the feature map depends on.
    """

    kind: str
    width: int
    num_prefix: int
    used: frozenset[str]

    def to_map(self, output: Tensor) -> Tensor:
        """Return what `forward_features` returned as a feature map (B, D, h, w)."""
        if self.kind == "NHWC":
            return output.permute(0, 3, 1, 2)
        if self.kind == "NCHW":
            return output
        places = output[:, self.num_prefix :].transpose(1, 2)
        side = math.isqrt(places.shape[2])
        return places.unflatten(2, (side, side))


class Timm_CSRA(Network):
    """timm's model NAME up to what its average pooling pools, as `trunk`, and a CSRA `classifier`.

    The state dict has timm's names, prefixed with `trunk.`. Weights start random. What timm puts after the
    pooling, such as a last norm or MobileNetV4's last convolution, is left out.
    model: `timm:NAME`. img_size: side of the images in pixels; models that timm builds for one size take only
    that one.
    """

    def __init__(self, num_heads: int, lam: float, num_classes: int, model: str, img_size: int):
        super().__init__()
        self.trunk: Any
        self.layout = read_layout(model, img_size)
        # On the CPU also if the caller chose the meta device, because timm's buffers, such as tables of
        # relative positions, hold numbers that no checkpoint has.
        with torch.device("cpu"):
            self.trunk = create_trunk(model, img_size)
        remove_unused(self.trunk, self.layout.used)
        self.classifier = make_classifier(num_heads, lam, self.layout.width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to the last feature map (B, D, h, w)."""
        return self.layout.to_map(self.trunk.forward_features(self.normalize(images)))

    def adapt(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict under this network's names; timm's own lack the prefix `trunk.`.

        Position embeddings and the like are resized to this network's images. Raises ValueError if timm does
        not understand the state dict.
        """
        own = {name: value for name, value in state_dict.items() if name.startswith("trunk.")}
        weights = {name.removeprefix("trunk."): value for name, value in own.items()} or state_dict
        if not self.fits(weights):
            weights = self.converted(weights)
        adapted = {f"trunk.{name}": value for name, value in weights.items()}
        if own:  # timm's own classifier stays out
            adapted |= {name: value for name, value in state_dict.items() if name not in own}
        return adapted

    def fits(self, weights: dict[str, Tensor]) -> bool:
        """Return whether weights under timm's names have the names and shapes of this trunk."""
        shapes = {name: value.shape for name, value in weights.items()}
        wanted = {name: value.shape for name, value in self.trunk.state_dict().items()}
        return wanted.items() <= shapes.items()

    def converted(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights as timm loads them: files of the models' authors renamed, embeddings resized."""
        convert = getattr(sys.modules[type(self.trunk).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return weights
        try:
            with warnings.catch_warnings(action="ignore"):  # of torch, about how timm indexes
                return dict(convert(dict(weights), self.trunk))
        except TIMM_ERRORS as error:
            raise ValueError(f"timm cannot convert it: {reason(error)}") from None

    def share_batch_statistics(self) -> None:
        """Let each batch norm compute its statistics over all processes."""
        # torch's own function would drop the activation that timm's norms contain.
        self.trunk = import_timm("timm").layers.convert_sync_batchnorm(self.trunk)


def is_timm(model: str) -> bool:
    """Return whether a model's name is one of timm's."""
    return model.startswith(PREFIX)


def import_timm(wanted_for: str) -> ModuleType:
    """Return the package timm; ValueError if it is not installed. wanted_for: named in the error."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError(f"{wanted_for} needs one more package: pip install timm") from None
    return timm


def list_timm(pattern: str) -> list[str]:
    """Return the names of timm's models that fit a pattern such as timm:convnext*.

    A pattern with a dot is for names with the name of their weights, as in timm:convnext_tiny.*. Raises
    ValueError if timm is not installed.
    """
    timm = import_timm(pattern)
    names = timm.list_models(pattern.removeprefix(PREFIX), pretrained="." in pattern)
    return [PREFIX + name for name in names]


def check_name(model: str) -> None:
    """Raise ValueError unless timm has a model and weights of this name."""
    timm = import_timm(model)
    name = model.removeprefix(PREFIX)
    architecture, dot, _ = name.partition(".")
    known = timm.list_models()
    if architecture not in known:  # timm.is_model also knows names of earlier versions, without a description
        similar = difflib.get_close_matches(architecture, known) or ["resnet50"]
        raise ValueError(f"{model!r}: did you mean {', '.join(PREFIX + other for other in similar)}?")
    if dot and name not in timm.list_pretrained(f"{architecture}.*"):
        tags = [PREFIX + weights for weights in timm.list_pretrained(f"{architecture}.*")]
        raise ValueError(f"{model!r}: timm has {', '.join(tags) or 'no weights for it'}")


def pretrained_cfg(model: str) -> Any:
    """Return timm's description of a model and its weights, a PretrainedCfg."""
    return import_timm(model).models.get_pretrained_cfg(model.removeprefix(PREFIX))


def own_img_size(model: str) -> int:
    """Return the side of the images that a model was trained with."""
    return int(pretrained_cfg(model).input_size[-1])


def own_normalization(model: str) -> str:
    """Return the key of NORMALIZATION for the pixels that a model was trained with; ValueError if none is."""
    cfg = pretrained_cfg(model)
    for name, (means, stds) in NORMALIZATION.items():
        if close(means, cfg.mean) and close(stds, cfg.std):
            return name
    raise ValueError(f"{model} was trained with mean {cfg.mean} and deviation {cfg.std}: give --normalize")


def close(numbers: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Return whether numbers are equal up to rounding."""
    if len(numbers) != len(others):
        return False
    return all(abs(a - b) < 1e-4 for a, b in zip(numbers, others))


def create_trunk(model: str, img_size: int) -> Any:
    """Return timm's model without its classifier, for images of img_size pixels a side."""
    timm = import_timm(model)
    # Such a model has embeddings or windows that depend on the size, and takes it when it is built.
    size = {"img_size": img_size} if pretrained_cfg(model).fixed_input_size else {}
    return timm.create_model(model.removeprefix(PREFIX), pretrained=False, num_classes=0, **size)


@functools.cache
def read_layout(model: str, img_size: int) -> Layout:
    """Return what a model computes from images of img_size pixels a side, without computing it.

    Raises ValueError if timm has no such model, or if it does not take images of this size, or has no map.
    """
    check_name(model)
    try:
        # On the meta device tensors have a shape and no numbers, so nothing takes time.
        with torch.device("meta"), torch.random.fork_rng(devices=[]), recording_gradients():
            trunk = create_trunk(model, img_size).eval()
            trunk.requires_grad_(True)  # some networks freeze their position embeddings
            output = trunk.forward_features(torch.zeros(1, 3, img_size, img_size))
    except TIMM_ERRORS as error:
        raise ValueError(refusal(model, img_size, error)) from None
    if not isinstance(output, Tensor):
        raise ValueError(f"{model} has no feature map: it returns a {type(output).__name__}")
    check_patches(trunk, model, img_size)
    kind, num_prefix = read_kind(trunk, model, output)
    return Layout(kind, trunk.num_features, num_prefix, used_parameters(trunk, output))


def refusal(model: str, img_size: int, error: BaseException) -> str:
    """Return the message for a model that failed on images of img_size pixels a side."""
    own_size = own_img_size(model)
    if img_size == own_size:
        return f"timm cannot run {model} here ({reason(error)}): choose another model"
    size = f"{img_size} x {img_size}"
    return f"{model} does not take images of {size} ({reason(error)}); its own size is {own_size}"


@contextlib.contextmanager
def recording_gradients() -> Iterator[None]:
    """Inside the block, operations are recorded for a backward pass, whatever the caller has set."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def check_patches(trunk: Any, model: str, img_size: int) -> None:
    """Raise ValueError if a model's patches would leave out the last pixels of an image."""
    patch_size = getattr(getattr(trunk, "patch_embed", None), "patch_size", 1)
    step = patch_size if isinstance(patch_size, int) else math.lcm(*patch_size)
    if img_size % step:
        raise ValueError(f"{model} takes images whose side is a multiple of {step}, not {img_size}")


def read_kind(trunk: Any, model: str, output: Tensor) -> tuple[str, int]:
    """Return the kind of a Layout and its number of prefix tokens; ValueError if there is no map."""
    width = trunk.num_features
    num_prefix = getattr(trunk, "num_prefix_tokens", 0)
    if output.ndim == 4 and getattr(trunk, "output_fmt", "NCHW") == "NHWC" and output.shape[3] == width:
        return "NHWC", 0
    if output.ndim == 4 and output.shape[1] == width:
        return "NCHW", 0
    if output.ndim == 3 and output.shape[2] == width:
        places = output.shape[1] - num_prefix
        if places > 1 and math.isqrt(places) ** 2 == places:
            return "tokens", num_prefix
    shape = tuple(output.shape[1:])
    raise ValueError(f"{model} has no feature map: it makes features of shape {shape} from an image")


def used_parameters(trunk: nn.Module, output: Tensor) -> frozenset[str]:
    """Return the names of the parameters that an output was computed from."""
    used = set()
    seen = set()
    nodes = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of a node that holds a parameter
        if variable is not None:
            used.add(variable)
        nodes.extend(following for following, _ in node.next_functions)
    # A parameter that two modules share has two names.
    named = trunk.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in named if parameter in used)


def remove_unused(module: nn.Module, used: frozenset[str], path: str = "") -> None:
    """Remove the parameters that are not used: DDP waits for a gradient of every parameter.

    path: the name of the module in the network, with a dot at its end.
    """
    for name, child in list(module.named_children()):
        own_path = f"{path}{name}."
        parameters = [own_path + parameter for parameter, _ in child.named_parameters()]
        if parameters and used.isdisjoint(parameters):
            setattr(module, name, nn.Identity())
        else:
            remove_unused(child, used, own_path)
    for name, _ in list(module.named_parameters(recurse=False)):
        if path + name not in used:
            module.register_parameter(name, None)


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].removesuffix(".") if lines else type(error).__name__
