"""Checkpoints for Python users: load_model returns the network that a file holds."""

import argparse
from pathlib import Path
from types import MethodType

from pipeline.models import build, read_architecture
from pipeline.network import NORMALIZATION, Network
from utils.data.classes import class_names
from utils.data.datasets import DATASETS, OWN, dataset_spec
from utils.inference.predict import attention, predict
from utils.runtime.cli import UserError, check_torch, reporting_errors, reporting_value_errors
from utils.runtime.device import choose_device
from utils.weights.contents import load_checkpoint
from utils.weights.fitting import load_weights


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
    Raises UserError if the file holds no network of this project, or one for other classes, or if PyTorch
    is too old.
    """
    check_torch()
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
