"""load_model: a checkpoint as a Predictor, for Python users."""

from pathlib import Path
from typing import Any, TypeVar

from pipeline.models import BuildOptions, default_lam, read_architecture
from pipeline.network import NORMALIZATION
from utils.data.classes import class_names
from utils.data.datasets import DATASETS, DEFAULT_DATASET, OWN, dataset_spec
from utils.inference.predictor import Predictor
from utils.runtime.device import find_device
from utils.runtime.errors import UserError, reporting_value_errors
from utils.runtime.limits import MAX_PIXELS
from utils.runtime.versions import check_torch
from utils.weights.building import build_network
from utils.weights.contents import load_checkpoint
from utils.weights.fitting import load_adapted
from utils.weights.sources import check_is_published, dataset_and_lam, find_published, local_file

Value = TypeVar("Value")


def load_model(  # noqa: PLR0913  a Python user may want to set each
    path: str | Path,
    dataset: str | None = None,
    img_size: int | None = None,
    lam: float | None = None,
    device: str = "auto",
    normalize: str | None = None,
    max_pixels: float = MAX_PIXELS,
) -> Predictor:
    """Return a checkpoint's network as a Predictor: `predict` and `attention` take photographs.

    path: a file, a URL (https://…, file://…), or the name of a published checkpoint (val.py
    --list_checkpoints), which is downloaded once into torch.hub's folder. A published one brings its data set
    and λ.
    dataset: the data set of a file that main.py did not write; None means voc07. If a file stores its class
    names, those of `dataset` must be the same.
    img_size, lam, normalize: None means as trained. If the file does not store it, img_size and normalize are
    those of the data set, and lam is 0.1, or 0 for average pooling.
    device: as torch names it; "auto" is a GPU if there is one.
    max_pixels: the Predictor refuses photographs with more pixels, before it decodes them.
    Raises UserError if the file holds no network of this project, or one for other classes, if it cannot be
    downloaded, or if PyTorch is too old.
    """
    check_torch()
    published = find_published(path)
    if published:
        dataset, lam = dataset_and_lam(published, dataset, lam)
    predictor = read_predictor(local_file(path), dataset, img_size, lam, normalize)
    if published:
        check_is_published(published, predictor.options["model"], predictor.options["num_heads"])
    predictor.max_pixels = max_pixels
    return predictor.to(find_device() if device == "auto" else device)


def read_predictor(
    path: Path,
    dataset: str | None = None,
    img_size: int | None = None,
    lam: float | None = None,
    normalize: str | None = None,
    model: str | None = None,
) -> Predictor:
    """Return a checkpoint's network as a Predictor on the CPU; see load_model for the arguments.

    model: the backbone of a file that does not say which of torchvision's classifiers it has.
    """
    checkpoint = load_checkpoint(path)
    weights, config = checkpoint["model"], checkpoint["config"]
    described_by = config.get("dataset") or dataset or DEFAULT_DATASET
    spec = DATASETS.get(described_by, OWN)
    normalization = first_known(normalize, config.get("normalize"), spec.normalize)
    if normalization not in NORMALIZATION:
        known = ", ".join(NORMALIZATION)
        raise UserError(f"{path}: normalize {normalization} is not one of {known}")
    with reporting_value_errors(path):
        architecture = read_architecture(weights, config.get("model", model))
        options = BuildOptions(
            model=architecture["model"],
            num_heads=architecture["num_heads"],
            num_cls=architecture["num_cls"],
            img_size=first_known(img_size, config.get("img_size"), architecture["img_size"], spec.img_size),
            lam=first_known(lam, config.get("lam"), default_lam(architecture["num_heads"])),
        )
        network = build_network(options, normalization)
    load_adapted(network, weights, str(path))
    classes = names_of_outputs(checkpoint, options["num_cls"], dataset, path)
    return Predictor(network, classes, options, config)


def first_known(*values: Value | None) -> Value:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)


def names_of_outputs(
    checkpoint: dict[str, Any], num_cls: int, dataset: str | None, path: str | Path
) -> list[str]:
    """Return the class names that a checkpoint stores, or else the data set's; UserError if they differ."""
    stored: list[str] | None = checkpoint.get("classes")
    if stored is not None and len(stored) != num_cls:
        raise UserError(f"{path}: it names {len(stored)} classes for {num_cls} outputs")
    if stored is not None and dataset is None:
        return stored
    dataset = dataset or DEFAULT_DATASET
    names = class_names(dataset_spec(dataset).folder)
    if len(names) == num_cls and stored in (None, names):
        return names
    held = f"{num_cls} classes"
    for number, (own, name) in enumerate(zip(stored or [], names), start=1):
        if own != name:
            held += f" (class {number} is {own}, not {name})"
            break
    trained = checkpoint["config"].get("dataset", "the one it was trained for")
    counts = f"{held}, --dataset {dataset} has {len(names)}"
    raise UserError(f"{path} holds {counts}: name its data set, {trained}")
