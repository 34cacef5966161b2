"""Checkpoints: written completely or not at all, and loaded without running code in them."""

import argparse
import contextlib
import io
import os
import sys
import warnings
import zipfile
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.torch_version import TorchVersion

from pipeline.models import build, read_architecture
from pipeline.network import NORMALIZATION, Network, rename
from utils.data.datasets import DATASETS, OWN, dataset_spec
from utils.data.label_files import check_names, class_names
from utils.inference.predict import attention, predict
from utils.runtime.cli import UserError, number, reporting_errors, reporting_value_errors
from utils.runtime.device import choose_device
from utils.runtime.distributed import first_process_first
from utils.runtime.files import atomic_write

# timm's files, which the authors' Vision Transformers start from: trained on ImageNet-21k, then on ImageNet.
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
VIT_URLS = {
    "vit_B16_224": f"{TIMM}/jx_vit_base_p16_224-80ecf9dd.pth",
    "vit_L16_224": f"{TIMM}/jx_vit_large_p16_224-4ee7a4dc.pth",
}
# How names start in files of DataParallel and of mmpretrain, and here.
PREFIXES = {r"module\.": "", r"backbone\.": "", r"head\.csra_heads\.": "classifier.multi_head."}


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; `path` holds a complete one at every moment."""
    content = io.BytesIO()  # torch.save hides the reason when it cannot write to a file
    torch.save(checkpoint, content)
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())


def load_model(
    path: str | Path,
    dataset: str | None = None,
    img_size: int | None = None,
    lam: float | None = None,
    device: str = "auto",
    normalize: str | None = None,
) -> Network:
    """Return a checkpoint's network, in eval mode, for images (B, 3, S, S) in [0, 1] on its device.

    Its methods `predict` and `attention` take photographs, see utils/inference/predict.py. It has `classes`,
    its class names, `options` (model, num_heads, num_cls, lam and img_size) and `config`, the options of
    training, {} for a file that main.py did not write.
    dataset: the data set of such a file, which does not store it; None means voc07. A file that stores its
    class names must have those of `dataset`.
    img_size, lam, normalize: None means as trained, else the data set's, and for lam 0.1 (average pooling 0).
    device: as torch names it; "auto" is a GPU if there is one.
    Raises UserError if the file holds no network of this project, or one for other classes.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint["config"]
    spec = DATASETS.get(config.get("dataset", dataset or "voc07"), OWN)
    with reporting_errors(f"{path} cannot be loaded"), reporting_value_errors(path):
        held = read_architecture(checkpoint["model"], config.get("model"))
        if "classes" in checkpoint and len(checkpoint["classes"]) != held["num_cls"]:
            raise ValueError(f"it names {len(checkpoint['classes'])} classes for {held['num_cls']} outputs")
        lam = config.get("lam", 0.1 if held["num_heads"] else 0.0) if lam is None else lam
        img_size = img_size or config.get("img_size") or held["img_size"] or spec.img_size
        options = held | {"lam": lam, "img_size": img_size}
        model = build(**options)
        model.normalization = normalize or config.get("normalize") or spec.normalize
        if model.normalization not in NORMALIZATION:
            raise ValueError(f"normalize {model.normalization} is not one of {', '.join(NORMALIZATION)}")
        load_weights(model, model.adapt(checkpoint["model"]), str(path))
    model.options, model.config = options, config
    model.classes = read_classes(checkpoint, options["num_cls"], dataset, path)
    model.predict, model.attention = MethodType(predict, model), MethodType(attention, model)
    return model.eval().to(choose_device(device) if device == "auto" else device)


def read_classes(checkpoint: dict, num_cls: int, dataset: str | None, path: str | Path) -> list[str]:
    """Return the class names in a checkpoint, else the data set's; UserError if they differ."""
    if dataset is None and "classes" in checkpoint:
        return checkpoint["classes"]
    names = class_names(dataset_spec(dataset or "voc07").folder)
    classes = checkpoint.get("classes", names)
    if len(classes) == num_cls and classes == names:
        return names
    pairs = enumerate(zip(classes, names), start=1)
    unequal = [f" (class {i} is {own}, not {name})" for i, (own, name) in pairs if own != name]
    counts = f"{num_cls} classes{''.join(unequal[:1])}, --dataset {dataset or 'voc07'} has {len(names)}"
    trained = checkpoint["config"].get("dataset", "the one it was trained for")
    raise UserError(f"{path} holds {counts}: name its data set, {trained}")


def load_model_for(args: argparse.Namespace) -> Network:
    """Return the network, on the CPU, that a command's options ask for; UserError if the file has another."""
    model = load_model(args.load_from, args.dataset, args.img_size, args.lam, "cpu", args.normalize)
    for name in ("model", "num_heads", "num_cls"):
        given, held = getattr(args, name), model.options[name]
        if given not in (None, held):
            raise UserError(f"--{name} {given}: {args.load_from} has {name} {held}; leave the option out")
    return model


class NumpyType:
    """Stands for a NumPy type in a pickle: a code such as "f8", then a state that holds the byte order."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple):
        self.order = state[1]


def python_number(kind: NumpyType, data: bytes) -> float | int:
    """Return the number that a NumPy scalar in a pickle holds; TypeError if it is no number."""
    is_type = isinstance(kind, NumpyType) and kind.order in ("", *"<>|=")
    value = np.frombuffer(data, kind.order + kind.code, count=1).item() if is_type else None
    if not isinstance(value, int | float):
        raise TypeError("not a number")
    return value


# What a pickle may hold besides PyTorch's own. NumPy's own functions can be made to crash, or worse.
SCALARS = [(python_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
SAFE = [*SCALARS, (NumpyType, "numpy.dtype"), TorchVersion, argparse.Namespace]


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: a state dict, bare or under "model" or "state_dict". Names may start as in PREFIXES.

    Returns a dict of "model", the state dict, "config", the options of training (empty unless main.py wrote
    the file), and whatever else main.py wrote. weights_only: nothing in the file is run.
    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'not a file: name best.pth in it' if path.exists() else 'no such file'}")
    check_intact(path)
    try:
        # The warnings are about unusual tensors, which load_weights refuses.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(SAFE):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on the bytes, and the message can advise to run the file
        fault = f"is not a checkpoint that can be read safely ({type(error).__name__})"
        raise UserError(f"{path} {fault}: it must be a state dict, written by torch.save") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    nested = (checkpoint.get(key) for key in ("model", "state_dict"))
    state_dict = next((value for value in nested if isinstance(value, dict)), checkpoint)
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state_dict.items()):
        raise UserError(f"{path} holds no state dict, which is a dict of names and tensors")
    is_own = {"config", "classes", "record"} <= checkpoint.keys()
    if is_own:
        check_own(checkpoint, path)
    return {**(checkpoint if is_own else {"config": {}}), "model": rename(state_dict, PREFIXES)}


def check_own(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the options and class names beside the weights are of the right types."""
    config, option_type = checkpoint["config"], str | int | float | None
    with reporting_errors(f"{path} is damaged"):
        if not all(isinstance(value, option_type) for value in config.values()):
            raise TypeError("its config holds more than words and numbers")
        for option, parse in (("lam", number(float, 0)), ("img_size", number(int, 33))):
            with reporting_errors(f"{path} is damaged: {option} in its config"):
                config[option] = parse(str(config[option]))
        check_names(checkpoint["classes"], path)


def check_intact(path: Path) -> None:
    """Raise UserError for a web page or a wrong checksum in the file, which torch.load does not check."""
    with open(path, "rb") as file:
        start = file.read(500).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise UserError(f"{path} is a web page, not a checkpoint: download it again in a browser")
    with reporting_errors(f"{path} is damaged"):
        if not zipfile.is_zipfile(path):
            return  # from before PyTorch 1.6, or not a checkpoint: torch.load finds out
        with zipfile.ZipFile(path) as file:
            # torch.save does not compress. A compressed file could expand to fill the memory.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()) or file.testzip():
                raise UserError(f"{path} is damaged, or not from torch.save: copy or download it again")


def load_weights(model: Network, weights: dict[str, Tensor], source: str, trunk_only: bool = False) -> None:
    """Load a state dict (trunk_only: no `classifier`); UserError, naming `source`, if it does not fit."""
    # Batch counters are not used: old files lack them, and in averaged weights they are fractions.
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    if trunk_only:
        wanted = {k: v for k, v in wanted.items() if not k.startswith("classifier.")}
        weights = {k: v for k, v in weights.items() if k in wanted}
    given = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
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
    model.load_state_dict(given, strict=False)


def first_not_finite(state_dict: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, None if there is none."""
    return next((key for key in sorted(state_dict) if not state_dict[key].isfinite().all()), None)


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


def imagenet_weights(model: str) -> dict[str, Tensor]:
    """Return a model's ImageNet weights, cached or downloaded; UserError if neither works."""
    url = VIT_URLS.get(model) or torchvision.models.get_model_weights(model).IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    try:
        with contextlib.redirect_stderr(sys.stdout):  # the download's progress; stderr is for errors
            return torch.hub.load_state_dict_from_url(url, None, "cpu", check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the file system or torch.load
        if cached.exists():
            raise UserError(f"{cached} is damaged: delete it, or use --pretrained none") from None
        way_out = f"put the file {url} at {cached}, or use --pretrained none"
        raise UserError(f"cannot download ImageNet weights ({error}): {way_out}") from None
