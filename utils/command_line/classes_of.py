"""--classes_of: the classes of a data set or of a trained model, for a new data set."""

import argparse
from pathlib import Path

from utils.data.classes import KnownClasses, class_names
from utils.data.datasets import DATASETS, dataset_spec, is_folder_name
from utils.runtime.arguments import expand_home
from utils.runtime.errors import UserError


def add_classes_of(group: argparse._ActionsContainer) -> None:
    """Add the option --classes_of."""
    classes_help = "take the classes of a data set or a checkpoint: for test images alone, for val.py"
    group.add_argument("--classes_of", type=expand_home, metavar="NAME|FILE", help=classes_help)


def read_classes_of(given: str | None) -> KnownClasses | None:
    """Return the classes of a data set or of a checkpoint, None if none is given."""
    if given is None:
        return None
    option = f"--classes_of {given}"
    path = Path(given)
    if path.is_file():
        return KnownClasses(checkpoint_classes(path), option)
    if (path / "best.pth").is_file():
        raise UserError(f"{option} is a folder: name a checkpoint in it, {path / 'best.pth'}")
    if given not in DATASETS and not (is_folder_name(given) and Path("data", given).is_dir()):
        known = f"{', '.join(DATASETS)}, nor a folder in data/"
        raise UserError(f"{option}: no such checkpoint, and not a data set: not one of {known}")
    return KnownClasses(class_names(dataset_spec(given).folder), option)


def checkpoint_classes(path: Path) -> list[str]:
    """Return the class names that a checkpoint holds; UserError if it holds none."""
    from utils.weights.contents import load_checkpoint  # imports torch

    names: list[str] | None = load_checkpoint(path).get("classes")
    if names is None:
        raise UserError(f"--classes_of {path}: the file holds no class names: name its data set instead")
    return names
