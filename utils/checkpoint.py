"""Checkpoint files: written whole, read without running anything in them, and told from what is none."""

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
from torch import Tensor, nn

from utils.datasets import dataset_spec
from utils.label_files import class_names, is_line
from utils.runtime.cli import UserError, number
from utils.runtime.files import whole_file

NUMBERS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8}


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a complete one."""
    content = io.BytesIO()  # torch.save hides the reason when it cannot write to a file
    torch.save(checkpoint, content)
    with whole_file(path, "wb") as file:
        file.write(content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: a bare state dict, or one under "model" or "state_dict", with or without `module.`.

    Returns its state dict as "model", the arguments it was trained with as "config", which is empty unless
    main.py wrote the file, and what else main.py wrote.
    Raises UserError where the file is missing or no checkpoint. weights_only=True: nothing in the file runs.
    """
    if not path.is_file():
        fault = "is a folder or a device, not a checkpoint" if path.exists() else "is missing: no such file"
        raise UserError(f"{path} {fault}")
    check_page(path)
    check_intact(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # a tensor of a kind that is no weight is told below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no exception of its own: what it raises depends on the bytes
        raise UserError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}): "
            "it must be what torch.save makes of a state dict"
        ) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    nested = (checkpoint.get(key) for key in ("model", "state_dict"))
    state_dict = next((value for value in nested if isinstance(value, dict)), checkpoint)
    if not all(isinstance(k, str) and is_plain(v) for k, v in state_dict.items()):
        raise UserError(f"{path} holds no state dict, which is names and tensors")
    own = {"config": {}}
    if {"config", "classes", "record"} <= checkpoint.keys():
        own = checkpoint
        check_own(checkpoint, path)
    return {**own, "model": {k.removeprefix("module."): v for k, v in state_dict.items()}}


def names_of_classes(checkpoint: dict[str, Any], path: Path, count: int, dataset: str) -> list[str]:
    """Return a checkpoint's class names, else those of a data set; UserError if these are not so many."""
    names = checkpoint.get("classes") or class_names(dataset_spec(dataset).folder)
    if len(names) != count:
        raise UserError(
            f"{path} holds {count} classes, --dataset {dataset} has {len(names)}: "
            "name the data set it was trained for"
        )
    return names


def is_plain(value: Any) -> bool:
    """Tell whether a value is a tensor of numbers in memory, not sparse or of an odd type or without data."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in NUMBERS
    )


def check_own(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError where the options and names beside the weights are not such as main.py writes."""
    config, classes = checkpoint["config"], checkpoint["classes"]
    if not isinstance(config, dict) or not all(
        isinstance(name, str) and isinstance(value, str | int | float | None)
        for name, value in config.items()
    ):
        raise UserError(f"{path} is damaged: its config holds no options")
    for option, parse in (("lam", number(float, 0)), ("img_size", number(int, 33))):
        try:
            config[option] = parse(str(config.get(option)))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{path} is damaged: the {option} of its config, {error}") from None
    if not isinstance(classes, list) or not all(isinstance(n, str) and is_line(n) for n in classes):
        raise UserError(f"{path} is damaged: its classes are not names")


def check_page(path: Path) -> None:
    """Raise UserError where a web page was saved in a checkpoint's place."""
    with open(path, "rb") as file:
        start = file.read(500).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise UserError(
            f"{path} is a web page, not a checkpoint, as a failed download leaves (Google Drive's warning or "
            "quota page): download it again in a browser"
        )


def check_intact(path: Path) -> None:
    """Raise UserError where a file of torch.save is not as it was written: torch.load checks no checksum."""
    try:
        if not zipfile.is_zipfile(path):
            return  # a file of before PyTorch 1.6, or no checkpoint at all: torch.load will tell
        with zipfile.ZipFile(path) as file:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
            damaged = None if compressed else file.testzip()
    except Exception as error:  # what zipfile raises depends on the bytes, too
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    if compressed:
        raise UserError(f"{path} is a compressed archive: it must be what torch.save makes of a state dict")
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} in it is wrong")


def load_weights(
    model: nn.Module, state_dict: dict[str, Tensor], source: str, backbone_only: bool = False
) -> None:
    """Load a state dict into a model; UserError, which names `source`, if names or shapes differ.

    backbone_only: leave the model's `classifier` as it is, and what the file holds beside the backbone aside.
    """
    # Batch counters nothing here reads: old files lack them, and averaged weights have them as fractions.
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    wanted = {
        k: v
        for k, v in model.state_dict().items()
        if not (backbone_only and k.startswith("classifier.")) and not k.endswith("num_batches_tracked")
    }
    missing = [k for k in wanted if k not in state_dict]
    extra = [] if backbone_only else [k for k in state_dict if k not in wanted]
    for problem, keys in (("lacks", missing), ("also holds", extra)):
        if keys:
            raise UserError(
                f"{source} {problem} {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
            )
    for key in sorted(wanted.keys() & state_dict.keys()):
        shape, wanted_shape = tuple(state_dict[key].shape), tuple(wanted[key].shape)
        if shape != wanted_shape:
            raise UserError(f"{source}: {key} has shape {shape}, the model wants {wanted_shape}")
        if state_dict[key].is_floating_point() != wanted[key].is_floating_point():
            raise UserError(f"{source}: {key} has type {state_dict[key].dtype}, not {wanted[key].dtype}")
    broken = first_not_finite({key: state_dict[key] for key in wanted.keys() & state_dict.keys()})
    if broken:
        raise UserError(
            f"{source}: {broken} holds NaN or infinite values: the training that made it diverged"
        )
    model.load_state_dict({k: state_dict[k] for k in wanted if k in state_dict}, strict=False)


def first_not_finite(state_dict: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, None if there is none."""
    return next((key for key in sorted(state_dict) if not state_dict[key].isfinite().all()), None)


def imagenet_weights(model_name: str) -> dict[str, Tensor]:
    """Return torchvision's IMAGENET1K_V1 weights of a model, cached or downloaded, else UserError."""
    weights = torchvision.models.get_model_weights(model_name).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
    try:
        with contextlib.redirect_stderr(sys.stdout):  # the download's progress; stderr is for errors
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # the network's, the file system's or torch.load's
        if cached.exists():
            raise UserError(f"{cached} is damaged: delete it, or use --pretrained none") from None
        raise UserError(
            f"cannot download ImageNet weights ({error}): put the file {weights.url} at {cached}, "
            "or use --pretrained none"
        ) from None
