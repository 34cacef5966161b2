"""Find images without labels in files, folders and patterns, and load them in batches."""

import glob
import math
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.runtime import interrupt
from utils.runtime.cli import UserError
from utils.transforms import eval_transform, load_image


def find_photos(places: list[str], out_dir: Path | None = None) -> list[str]:
    """Return the files that the places (files, folders or patterns) name, each file once.

    Leaves out the hidden files in folders and the files in out_dir. Raises UserError if none is left.
    """
    found = []
    for place in places:
        matches = [place] if os.path.exists(place) else sorted(glob.glob(place, recursive=True))
        files = [file for match in matches for file in files_below(match)]
        if not files:
            raise UserError(f"--img_dir {place} names no file, or only hidden ones")
        found += map(os.path.normpath, files)
    if out_dir:
        prefix = f"{os.path.abspath(out_dir)}{os.sep}"
        found = [path for path in found if not os.path.abspath(path).startswith(prefix)]
    if not found:
        raise UserError(f"--out_dir {out_dir} holds the images themselves: name another folder")
    return list(dict.fromkeys(found))


def files_below(path: str) -> list[str]:
    """Return the visible files in a folder and its subfolders, sorted; for a file, return the file."""
    if not os.path.isdir(path):
        return [path]
    files = (file for file in Path(path).rglob("*") if file.is_file())
    return sorted(str(f) for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts))


class Photos(Dataset):
    """Image files, resized to squares of img_size; a file that cannot be read gives an error message."""

    def __init__(self, paths: list[str], img_size: int, max_pixels: float):
        self.paths, self.img_size, self.max_pixels = paths, img_size, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        """Return the index and the image (3, S, S) uint8, or the index and an error message."""
        try:
            return index, eval_transform(load_image(self.paths[index], self.max_pixels), self.img_size)
        except UserError as error:
            return index, str(error)


def collate(samples: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, list[str]]:
    """Return the indices of the readable images, these images (B, 3, S, S), and the error messages."""
    errors = [sample for _, sample in samples if isinstance(sample, str)]
    readable = [(index, sample) for index, sample in samples if isinstance(sample, Tensor)]
    images = default_collate([image for _, image in readable]) if readable else torch.empty(0)
    return [index for index, _ in readable], images, errors


def make_photo_loader(dataset: Photos, batch_size: int, num_workers: int) -> DataLoader:
    """Return a loader of batches in the order of the paths."""
    options = {"collate_fn": collate, "worker_init_fn": interrupt.ignore_signals}
    workers = min(num_workers, math.ceil(len(dataset) / batch_size))
    with warnings.catch_warnings(action="ignore"):  # PyTorch warns of more workers than cores
        return DataLoader(dataset, batch_size, num_workers=workers, **options)
