"""Every network by name: the paper's ResNets and Vision Transformers, others of torchvision and timm."""

import difflib
import fnmatch
import re
from typing import TypedDict

import torch
import torchvision
from torch import Tensor

from pipeline.csra import TEMPERATURES
from pipeline.network import Network, rename
from pipeline.resnet_csra import DEPTHS, TRUNK, ResNet_CSRA, read_depth
from pipeline.timm_csra import Timm_CSRA, check_name, is_timm, list_timm, read_layout
from pipeline.trunk_csra import Trunk_CSRA
from pipeline.vit_csra import PATCH, TIMM, VITS, ViT_CSRA, read_vit

RESNETS = tuple(f"resnet{depth}" for depth in DEPTHS.values())
# These take one image size only, end in a map per ImageNet class, or have no ImageNet-1k weights.
EXCLUDED = ("vit_*", "maxvit*", "squeezenet*", "regnet_y_128gf*")
OTHERS = tuple(torchvision.models.list_models(module=torchvision.models, exclude=(*EXCLUDED, *RESNETS)))
MODELS = (*RESNETS, *VITS, *OTHERS)
VIT_PARTS = ("conv_proj", "class_token", "encoder")  # of torchvision's Vision Transformer, without its head
IMAGENET_CLASSES = 1000


class BuildOptions(TypedDict):
    """The arguments of `build`."""

    model: str
    num_heads: int
    num_cls: int
    img_size: int
    lam: float


class Architecture(TypedDict):
    """The arguments of `build` that a state dict reveals; img_size is None if it does not reveal that."""

    model: str
    num_heads: int
    num_cls: int
    img_size: int | None


def check_model(model: str) -> None:
    """Raise ValueError unless there is a model of this name."""
    if is_timm(model):
        check_name(model)
    elif model not in MODELS:
        similar = ", ".join(difflib.get_close_matches(model, MODELS) or ["resnet101"])
        raise ValueError(f"{model!r}: did you mean {similar}? main.py --list_models prints all")


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that fit a pattern, of MODELS or, if it starts with `timm:`, of timm's models.

    Raises ValueError if none does, or if timm is needed and not installed.
    """
    names = list_timm(pattern) if is_timm(pattern) else fnmatch.filter(MODELS, pattern)
    if not names:
        raise ValueError("no model has such a name")
    return names


def check_img_size(model: str, img_size: int) -> None:
    """Raise ValueError if a model cannot take square images of img_size pixels a side."""
    if is_timm(model):
        read_layout(model, img_size)
    if model in VITS and img_size % PATCH:
        raise ValueError(f"{model} takes images whose side is a multiple of {PATCH}, not {img_size}")


def default_lam(num_heads: int) -> float:
    """Return the λ to use if none is given: 0.1, or 0 for average pooling, which has no heads."""
    return 0.1 if num_heads else 0.0


def build(model: str, num_heads: int, lam: float, num_cls: int, img_size: int) -> Network:
    """Return a network with random weights that maps images (B, 3, S, S) in [0, 1] to logits (B, num_cls).

    model: one of MODELS, or `timm:NAME`. num_heads: 1, 2, 4, 6 or 8; 0 is average pooling. img_size: S, in
    pixels, which only Vision Transformers and the like need to know. Raises ValueError if the model does not
    take images of this size, or if timm is needed and not installed.
    """
    check_img_size(model, img_size)
    if model in RESNETS:
        return ResNet_CSRA(num_heads, lam, num_cls, depth=int(model.removeprefix("resnet")))
    if model in VITS:
        return ViT_CSRA(num_heads, lam, num_cls, model, img_size)
    if is_timm(model):
        return Timm_CSRA(num_heads, lam, num_cls, model, img_size)
    network = Trunk_CSRA(num_heads, lam, num_cls, model)
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, img_size, img_size))
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        raise ValueError(f"{model} does not take images as small as {img_size} x {img_size}") from None
    return network.train()


def read_architecture(state_dict: dict[str, Tensor], model: str | None = None) -> Architecture:
    """Read the architecture off a state dict; ValueError if none fits.

    model: the name of the backbone, if it is known; a state dict of one in OTHERS or of timm reveals none.
    """
    heads = [k for k in state_dict if re.fullmatch(r"classifier\.multi_head\.\d+\.head\.weight", k)]
    num_heads = len(heads)
    weight = state_dict.get(heads[0] if heads else "classifier.head.weight")
    if weight is None:
        raise ValueError(no_head_message(state_dict))
    if num_heads not in (0, *TEMPERATURES) or weight.ndim != 4:
        raise ValueError(f"it has {num_heads} CSRA heads of shape {tuple(weight.shape)}")
    img_size = None
    if not any(name.startswith("trunk.") for name in state_dict):
        model, img_size = read_vit(state_dict)
        if model is None:
            model = f"resnet{read_depth(state_dict)}"
    elif model is None or not (model in OTHERS or is_timm(model)):
        raise ValueError("it does not say which backbone it has: name it with --model")
    return Architecture(model=model, num_heads=num_heads, num_cls=weight.shape[0], img_size=img_size)


def no_head_message(state_dict: dict[str, Tensor]) -> str:
    """Return the message for a state dict without a head; it says what the file is good for, if anything."""
    message = "it has no CSRA head (classifier.multi_head)"
    if is_start_of_training(state_dict):
        return f"{message}; train from it with --backbone_weights"
    return f"{message}: it is another kind of network, for the program that wrote it"


def is_start_of_training(state_dict: dict[str, Tensor]) -> bool:
    """Return whether a state dict is that of an ImageNet classifier, or of a known backbone alone."""
    matrices = [tensor for tensor in state_dict.values() if tensor.ndim == 2]
    if matrices and len(matrices[-1]) == IMAGENET_CLASSES:
        return True
    parts = {name.partition(".")[0] for name in rename(state_dict, TIMM)}
    try:
        if parts <= {*TRUNK}:
            read_depth(state_dict)
            return True
        return parts <= {*VIT_PARTS} and read_vit(state_dict)[0] is not None
    except ValueError:  # it is of another depth or width
        return False
