"""The optimizers that main.py offers, and which weights each of them decays."""

import argparse
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.network import Network


class Defaults(NamedTuple):
    """The options of an optimizer that the command line may leave out; AdamW has no momentum."""

    lr: float
    momentum: float | None
    w_d: float


# SGD's are the paper's. AdamW's are those of Query2Label, another trainer for multi-label recognition.
OPTIMIZERS = {
    "sgd": Defaults(lr=0.01, momentum=0.9, w_d=1e-4),
    "adamw": Defaults(lr=1e-4, momentum=None, w_d=0.01),
}


class Part(NamedTuple):
    """The backbone or the classifier: its parameters by name, and their learning rate."""

    name: str
    parameters: dict[str, nn.Parameter]
    base_lr: float


def build_optimizer(network: Network, args: argparse.Namespace) -> Optimizer:
    """Return the optimizer of --optimizer that has made no step yet.

    `base_lr` of its groups is --lr for the backbone, and --head_lr_factor times that for the classifier.
    """
    backbone = {name: p for name, p in network.named_parameters() if not name.startswith("classifier.")}
    classifier = dict(network.classifier.named_parameters())
    parts = [
        Part("backbone", backbone, args.lr),
        Part("classifier", classifier, args.head_lr_factor * args.lr),
    ]
    if args.optimizer == "adamw":
        return build_adamw(parts, args)
    return build_sgd(parts, args)


def build_sgd(parts: list[Part], args: argparse.Namespace) -> SGD:
    """Return SGD, with the same weight decay on all parameters, as in the paper."""
    groups = [make_group(part, list(part.parameters.values())) for part in parts]
    optimizer = SGD(groups, lr=args.lr, momentum=args.momentum, weight_decay=args.w_d, fused=True)
    # If fp16 overflows in the first step and the scaler skips it, fused SGD leaves momentum uninitialised.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_adamw(parts: list[Part], args: argparse.Namespace) -> AdamW:
    """Return AdamW, with weight decay on the weights of linear layers and convolutions alone."""
    groups = []
    for part in parts:
        decayed = [p for name, p in part.parameters.items() if is_decayed(name, p)]
        others = [p for name, p in part.parameters.items() if not is_decayed(name, p)]
        if decayed:
            groups.append(make_group(part, decayed))
        if others:
            groups.append(make_group(part, others) | {"weight_decay": 0.0})
    optimizer = AdamW(groups, lr=args.lr, weight_decay=args.w_d, fused=True)
    # A resume compares the saved state with this one.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether AdamW decays a parameter.

    It does not decay norms and biases, nor what has several dimensions and is not called a weight: position
    embeddings, class tokens, layer scales and tables of relative positions.
    """
    return name.endswith("weight") and parameter.ndim > 1


def make_group(part: Part, parameters: list[nn.Parameter]) -> dict[str, Any]:
    """Return a parameter group of a part; all groups of a part have its name and its rate."""
    return {"name": part.name, "params": parameters, "base_lr": part.base_lr}
