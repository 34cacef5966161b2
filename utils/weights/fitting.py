"""Load a state dict into a network, after checking that it fits."""

import argparse

from torch import Tensor

from pipeline.network import Network
from utils.runtime.cli import UserError, reporting_errors, reporting_value_errors
from utils.runtime.distributed import first_process_first
from utils.weights.contents import load_checkpoint
from utils.weights.downloads import imagenet_weights


def load_backbone(model: Network, args: argparse.Namespace) -> None:
    """Load the backbone weights that main.py's --pretrained or --backbone_weights asks for."""
    if args.cutmix:
        weights, source = load_checkpoint(args.cutmix)["model"], f"{args.cutmix} for {args.model}"
    elif args.pretrained == "imagenet":
        weights, source = first_process_first(lambda: imagenet_weights(args.model)), "ImageNet weights"
    else:
        return
    with reporting_errors(f"{source} cannot be loaded"), reporting_value_errors(source):
        load_weights(model, model.adapt(weights), source, trunk_only=True)


def load_weights(model: Network, weights: dict[str, Tensor], source: str, trunk_only: bool = False) -> None:
    """Load a state dict (trunk_only: no `classifier`); UserError, naming `source`, if it does not fit."""
    wanted = model.state_dict()
    if trunk_only:
        wanted = {k: v for k, v in wanted.items() if not k.startswith("classifier.")}
        weights = {k: v for k, v in weights.items() if k in wanted}
    check_weights(weights, wanted, source)
    model.load_state_dict(without_batch_counters(weights), strict=False)


def without_batch_counters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the batch counters: unused, missing in old files, and fractions in averaged weights."""
    return {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def check_weights(weights: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless a state dict, read from `source`, is finite and fits another, `wanted`."""
    given = without_batch_counters(weights)
    wanted = without_batch_counters(wanted)
    for problem, these, others in (("lacks", wanted, given), ("also holds", given, wanted)):
        if keys := [key for key in these if key not in others]:
            raise UserError(f"{source} {problem} {keys[0]} ({len(keys)} in all)")
    for key, value in wanted.items():
        found = given[key]
        if found.shape != value.shape or found.is_floating_point() != value.is_floating_point():
            shapes = f"{tuple(found.shape)} of {found.dtype}, the model {tuple(value.shape)} of {value.dtype}"
            raise UserError(f"{source}: {key} has shape {shapes}")
    if key := first_not_finite(given):
        raise UserError(f"{source}: {key} holds NaN or infinite values: the training that made it diverged")


def first_not_finite(state_dict: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, None if there is none."""
    return next((key for key in sorted(state_dict) if not state_dict[key].isfinite().all()), None)
