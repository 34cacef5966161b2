"""Every network by name: the paper's ResNets and Vision Transformers, and torchvision's other classifiers."""

import math
import re
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pipeline.csra import TEMPERATURES
from pipeline.resnet_csra import DEPTHS, ResNet_CSRA, read_depth
from pipeline.trunk_csra import Trunk_CSRA
from pipeline.vit_csra import PATCH, SIZES, ViT_CSRA

RESNETS = tuple(f"resnet{depth}" for depth in DEPTHS)
# Those of a fixed image size, whose last map is one per ImageNet class already, or without such weights.
UNFIT = ("vit_", "maxvit", "squeezenet", "regnet_y_128gf")
OTHERS = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith(UNFIT) and name not in RESNETS
)
MODELS = (*RESNETS, *SIZES, *OTHERS)


def check_img_size(model: str, img_size: int) -> None:
    """Raise ValueError where a model does not take images of this side, in pixels."""
    if model in SIZES and img_size % PATCH:
        raise ValueError(f"{model} takes images whose side is a multiple of {PATCH}, not {img_size}")


def build(model: str, num_heads: int, lam: float, num_cls: int, img_size: int) -> nn.Module:
    """Return a network, random and without downloads, that maps images (B, 3, S, S) to logits (B, C).

    It has `features(images) -> (B, D, H, W)`, `classifier` and `adapt(state_dict)`, which brings weights of
    other names or sizes to its own. model: one of MODELS. num_heads: 0 for average pooling, or as in MHA.
    img_size: S, in pixels, as `check_img_size` has it; only the Vision Transformers need it.
    """
    check_img_size(model, img_size)
    if model in RESNETS:
        return ResNet_CSRA(num_heads, lam, num_cls, depth=int(model.removeprefix("resnet")))
    if model in SIZES:
        return ViT_CSRA(num_heads, lam, num_cls, model, img_size)
    network = Trunk_CSRA(num_heads, lam, num_cls, model)
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, img_size, img_size))
    except RuntimeError:
        raise ValueError(f"{model} does not take images as small as {img_size} x {img_size}") from None
    return network.train()


def torchvision_model(model: str) -> str:
    """Return torchvision's own name of a model's trunk."""
    return {"vit_B16_224": "vit_b_16", "vit_L16_224": "vit_l_16"}.get(model, model)


def read_architecture(state_dict: dict[str, Tensor], model: str | None = None) -> dict[str, int | str]:
    """Read model, num_heads and num_cls off a state dict; model: what its file says, if it does.

    Raises ValueError where the names are not those of a network of this project.
    """
    heads = [k for k in state_dict if re.fullmatch(r"classifier\.multi_head\.\d+\.head\.weight", k)]
    num_heads = len(heads)
    if not heads and "classifier.head.weight" in state_dict:
        heads = ["classifier.head.weight"]
    if not heads:
        alike = [key for key in state_dict if re.match(r"(head|fc|classifier)", key)]
        held = f", but {', '.join(alike[:4])}" if alike else ""
        raise ValueError(f"it has no CSRA head (classifier.multi_head.0.head.weight){held}")
    if num_heads not in (0, *TEMPERATURES) or state_dict[heads[0]].ndim != 4:
        raise ValueError(f"it has {num_heads} CSRA heads of shape {tuple(state_dict[heads[0]].shape)}")
    if model not in OTHERS:
        model = read_vit(state_dict) or f"resnet{read_depth(state_dict)}"
    return {"model": model, "num_heads": num_heads, "num_cls": state_dict[heads[0]].shape[0]}


def restore(
    weights: dict[str, Tensor],
    trained: dict[str, Any],
    lam: float | None = None,
    img_size: int | None = None,
    default_size: int = 448,
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Return the network that weights are of, the weights under its names, and the arguments of `build`.

    trained: the options that the file says it was trained with, if any. What is None becomes as trained;
    λ is else 0.1, or 0 for average pooling, and the image size that of the position embeddings, if there are
    any, or default_size. Raises ValueError where there is no such network.
    """
    settings = read_architecture(weights, trained.get("model"))
    usual_lam = 0.1 if settings["num_heads"] else 0.0
    settings["lam"] = trained.get("lam", usual_lam) if lam is None else lam
    settings["img_size"] = img_size or trained.get("img_size") or trained_size(weights) or default_size
    network = build(**settings)
    return network, network.adapt(weights), settings


def trained_size(state_dict: dict[str, Tensor]) -> int | None:
    """Return the side of the images, in pixels, for which a Vision Transformer has position embeddings."""
    for key in ("encoder.pos_embedding", "pos_embed"):
        if key in state_dict and state_dict[key].ndim == 3:
            return PATCH * math.isqrt(state_dict[key].shape[1] - 1)
    return None


def read_vit(state_dict: dict[str, Tensor]) -> str | None:
    """Return which Vision Transformer a state dict is of, None if of none."""
    for key in ("class_token", "cls_token"):
        if key in state_dict and state_dict[key].ndim == 3:
            widths = {SIZES[model][2]: model for model in SIZES}
            width = state_dict[key].shape[-1]
            if width not in widths:
                raise ValueError(
                    f"its Vision Transformer is {width} wide, not one of {', '.join(map(str, widths))}"
                )
            return widths[width]
    return None
