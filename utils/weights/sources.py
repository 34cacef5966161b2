"""What a user names as a checkpoint: a file, a URL, or the name of a published checkpoint."""

import difflib
from collections.abc import Callable
from pathlib import Path

from utils.data.classes import class_names
from utils.data.datasets import dataset_spec
from utils.runtime.errors import UserError
from utils.weights.downloads import fetch, is_url
from utils.weights.published import PUBLISHED, Published


def find_published(source: str | Path) -> Published | None:
    """Return the published checkpoint of a name, None for anything else; an existing file wins."""
    published = PUBLISHED.get(str(source))
    return None if published and Path(source).exists() else published


def local_file(source: str | Path, report: Callable[[str], None] | None = None) -> Path:
    """Return the local file of a path, a URL or a published name, downloaded if it is not there yet.

    report: see fetch. Raises UserError if a download fails, or if the source resembles a published name. A
    path to a missing file is returned as it is.
    """
    text = str(source)
    published = find_published(source)
    if published:
        return fetch(published.url, published.file, report)
    if is_url(text):
        return fetch(text, report=report)
    path = Path(source)
    similar = difflib.get_close_matches(text.lower(), PUBLISHED) if path.name == text else []
    if similar and not path.exists():
        listed = "val.py --list_checkpoints prints the published names"
        raise UserError(f"{text}: no such file; did you mean {' or '.join(similar)}? {listed}")
    return path


def dataset_and_lam(published: Published, dataset: str | None, lam: float | None) -> tuple[str, float | None]:
    """Return the data set and λ to use with a published checkpoint: those given, else the published ones.

    Raises UserError for a backbone, and for a data set with other classes.
    """
    if published.dataset is None:
        way_out = f"train from it with main.py --backbone_weights {published.name}"
        raise UserError(f"{published.name} is a backbone without a classifier: {way_out}")
    if lam is None:
        lam = published.lam
    if dataset is None:
        return published.dataset, lam
    if class_names(dataset_spec(dataset).folder) != class_names(dataset_spec(published.dataset).folder):
        way_out = "leave the option out"
        raise UserError(
            f"--dataset {dataset}: {published.name} has the classes of {published.dataset}; {way_out}"
        )
    return dataset, lam


def check_is_published(published: Published, model: str, num_heads: int) -> None:
    """Raise UserError if the file of a published checkpoint, which may be put there by hand, is another."""
    if (model, num_heads) != (published.model, published.num_heads):
        held = f"{published.file} holds {model} with {num_heads} heads"
        raise UserError(
            f"{held}, {published.name} is {published.model} with {published.num_heads}: delete the file"
        )
