"""Checkpoint files: written completely or not at all, and loaded without running code in them."""

import argparse
import contextlib
import io
import os
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from pipeline.models import build, read_architecture, torchvision_model
from pipeline.network import Network
from utils.datasets import DATASETS, DatasetSpec, dataset_spec
from utils.label_files import class_names, is_line
from utils.runtime.cli import UserError, number, reporting_errors, reporting_value_errors
from utils.runtime.distributed import first_process_first
from utils.runtime.files import atomic_write

DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8}


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; `path` holds a complete one at every moment."""
    content = io.BytesIO()  # torch.save hides the reason when it cannot write to a file
    torch.save(checkpoint, content)
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())


def load_model(
    path: str | Path, dataset: str | None = None, lam: float | None = None, img_size: int | None = None
) -> Network:
    """Return a checkpoint's network, in eval mode, for images (B, 3, S, S) in [0, 1].

    The network has `classes`, its class names, `options` (model, num_heads, num_cls, lam and img_size) and
    `config`, the options of training, {} for a file from the paper's authors.
    dataset: the data set of a file from the paper's authors, which does not store it; None means voc07. It
    also sets how pixels are normalised. A file of main.py stores its own data set.
    lam, img_size: None means as trained, else 0.1 (0 for average pooling) and the data set's.
    Raises UserError if the file holds no network of this project, or the number of classes differs.
    """
    checkpoint = load_checkpoint(path)
    weights, config = checkpoint["model"], checkpoint["config"]
    dataset = dataset or "voc07"
    spec = DATASETS.get(config.get("dataset", dataset), DatasetSpec(folder=""))
    with reporting_value_errors(path):
        options = read_architecture(weights, config.get("model"))
        trained_lam = config.get("lam", 0.1 if options["num_heads"] else 0.0)
        options["lam"] = trained_lam if lam is None else lam
        options["img_size"] = img_size or config.get("img_size") or options["img_size"] or spec.img_size
        model = build(**options)
        weights = model.adapt(weights)
    load_weights(model, weights, str(path))
    model.mean, model.std = spec.mean, spec.std
    model.options, model.config = options, config
    model.classes = checkpoint.get("classes") or class_names(dataset_spec(dataset).folder)
    if "classes" in checkpoint and len(model.classes) != options["num_cls"]:
        raise UserError(
            f"{path} is damaged: {len(model.classes)} class names for {options['num_cls']} classes"
        )
    if len(model.classes) != options["num_cls"]:
        counts = f"{options['num_cls']} classes, --dataset {dataset} has {len(model.classes)}"
        raise UserError(f"{path} holds {counts}: name the data set it was trained for")
    return model.eval()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: a state dict, bare or under "model" or "state_dict", with or without `module.`.

    Returns a dict of "model", the state dict, "config", the options of training (empty unless main.py wrote
    the file), and whatever else main.py wrote. weights_only: nothing in the file is run.
    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        fault = "is a folder or a device, not a checkpoint" if path.exists() else "is missing: no such file"
        raise UserError(f"{path} {fault}")
    check_intact(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about unusual tensors, which are refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on the bytes, and the message can advise to run the file
        fault = f"is not a checkpoint that can be read safely ({type(error).__name__})"
        raise UserError(f"{path} {fault}: it must be a state dict, written by torch.save") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    nested = (checkpoint.get(key) for key in ("model", "state_dict"))
    state_dict = next((value for value in nested if isinstance(value, dict)), checkpoint)
    if not all(isinstance(k, str) and is_plain_tensor(v) for k, v in state_dict.items()):
        raise UserError(f"{path} holds no state dict, which is a dict of names and tensors")
    own = {"config": {}}
    if {"config", "classes", "record"} <= checkpoint.keys():
        own = checkpoint
        check_own(checkpoint, path)
    return {**own, "model": {k.removeprefix("module."): v for k, v in state_dict.items()}}


def is_plain_tensor(value: Any) -> bool:
    """Return whether a value is a dense tensor of numbers in memory."""
    if not isinstance(value, Tensor) or value.dtype not in DTYPES:
        return False
    return (value.layout, value.device.type) == (torch.strided, "cpu")


def check_own(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the options and class names beside the weights are of the right types."""
    config, classes, option_type = checkpoint["config"], checkpoint["classes"], str | int | float | None
    if not isinstance(config, dict) or not all(isinstance(v, option_type) for v in config.values()):
        raise UserError(f"{path} is damaged: its config holds no options")
    for option, parse in (("lam", number(float, 0)), ("img_size", number(int, 33))):
        try:
            config[option] = parse(str(config.get(option)))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{path} is damaged: the {option} of its config, {error}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) and is_line(name) for name in classes):
        raise UserError(f"{path} is damaged: its classes are not names")


def check_intact(path: Path) -> None:
    """Raise UserError for a web page or a wrong checksum in the file, which torch.load does not check."""
    with open(path, "rb") as file:
        start = file.read(500).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        cause = "the download failed, as with Google Drive's quota page"
        raise UserError(f"{path} is a web page, not a checkpoint: {cause}; download it again in a browser")
    with reporting_errors(f"{path} is damaged"):
        if not zipfile.is_zipfile(path):
            return  # from before PyTorch 1.6, or not a checkpoint: torch.load finds out
        with zipfile.ZipFile(path) as file:
            # torch.save does not compress. A compressed file could expand to fill the memory.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                raise UserError(f"{path} is a compressed archive, not a file of torch.save")
            if name := file.testzip():
                raise UserError(
                    f"{path} is damaged, the checksum of {name} is wrong: copy or download it again"
                )


def load_weights(
    model: Network, state_dict: dict[str, Tensor], source: str, backbone_only: bool = False
) -> None:
    """Load a state dict into a network; UserError if names, shapes or values do not fit.

    source: what errors call the weights. backbone_only: load all but `classifier`, and ignore other weights.
    """
    # Batch counters are not used: old files lack them, and in averaged weights they are fractions.
    given = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    if backbone_only:
        wanted = {k: v for k, v in wanted.items() if not k.startswith("classifier.")}
        given = {k: v for k, v in given.items() if k in wanted}
    missing, extra = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    for problem, keys in (("lacks", missing), ("also holds", extra)):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{source} {problem} {keys[0]}{others}")
    for key in sorted(wanted):
        if given[key].shape != wanted[key].shape:
            shapes = tuple(given[key].shape), tuple(wanted[key].shape)
            raise UserError(f"{source}: {key} has shape {shapes[0]}, the model has {shapes[1]}")
        if given[key].is_floating_point() != wanted[key].is_floating_point():
            raise UserError(f"{source}: {key} has type {given[key].dtype}, not {wanted[key].dtype}")
    if key := first_not_finite(given):
        raise UserError(f"{source}: {key} holds NaN or infinite values: the training that made it diverged")
    model.load_state_dict(given, strict=False)


def first_not_finite(state_dict: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, None if there is none."""
    return next((key for key in sorted(state_dict) if not state_dict[key].isfinite().all()), None)


def load_backbone(model: Network, args: argparse.Namespace) -> None:
    """Load the backbone weights that main.py's --pretrained or --backbone_weights asks for."""
    if args.cutmix:
        weights, source = load_checkpoint(args.cutmix)["model"], f"--cutmix {args.cutmix} for {args.model}"
    elif args.pretrained == "imagenet":
        source = "ImageNet weights"
        weights = first_process_first(lambda: imagenet_weights(torchvision_model(args.model)))
    else:
        return
    with reporting_value_errors(source):
        weights = model.adapt(weights)
    load_weights(model, weights, source, backbone_only=True)


def imagenet_weights(model_name: str) -> dict[str, Tensor]:
    """Return torchvision's IMAGENET1K_V1 weights of a model, cached or downloaded, else raise UserError."""
    weights = torchvision.models.get_model_weights(model_name).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
    try:
        with contextlib.redirect_stderr(sys.stdout):  # the download's progress; stderr is for errors
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the file system or torch.load
        if cached.exists():
            raise UserError(f"{cached} is damaged: delete it, or use --pretrained none") from None
        way_out = f"put the file {weights.url} at {cached}, or use --pretrained none"
        raise UserError(f"cannot download ImageNet weights ({error}): {way_out}") from None
