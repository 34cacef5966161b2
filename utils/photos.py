"""Images without labels: found in files, folders and patterns, and loaded in batches without the bad ones."""

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
    """Return the files that places name, each once: a file, all in a folder and those below it, or a pattern.

    Hidden files in folders are left out, and all in out_dir. Raises UserError for a place that names none.
    """
    found = []
    for place in places:
        here = [place] if os.path.exists(place) else sorted(glob.glob(place, recursive=True))
        files = [file for path in here for file in (walk(path) if os.path.isdir(path) else [path])]
        if not files:
            raise UserError(f"--img_dir {place} names no file: there is none, or only hidden ones")
        found += map(os.path.normpath, files)
    ours = f"{os.path.abspath(out_dir)}{os.sep}" if out_dir else None
    paths = [path for path in dict.fromkeys(found) if not ours or not os.path.abspath(path).startswith(ours)]
    if not paths:
        raise UserError(f"--out_dir {out_dir} holds the images themselves: name another folder")
    return paths


def walk(folder: str) -> list[str]:
    """Return the files in a folder and those below it, sorted, without the hidden ones."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return sorted(str(p) for p in paths if not any(x.startswith(".") for x in p.relative_to(folder).parts))


class Photos(Dataset):
    """Image files, resized to a square; a file that is no image gives a message instead."""

    def __init__(self, paths: list[str], img_size: int, max_pixels: float):
        self.paths = paths
        self.img_size = img_size
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        """Return the index, and the image (3, S, S) uint8 or why there is none."""
        try:
            return index, eval_transform(load_image(self.paths[index], self.max_pixels), self.img_size)
        except UserError as error:
            return index, str(error)


def collate(samples: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, list[str]]:
    """Return the indices of the good images, the images (B, 3, S, S), and a message for each bad one."""
    good = [(index, image) for index, image in samples if isinstance(image, Tensor)]
    faults = [fault for _, fault in samples if isinstance(fault, str)]
    images = default_collate([image for _, image in good]) if good else torch.empty(0)
    return [index for index, _ in good], images, faults


def make_photo_loader(dataset: Photos, batch_size: int, num_workers: int) -> DataLoader:
    """Batch photographs, in order."""
    workers = min(num_workers, math.ceil(len(dataset) / batch_size))
    with warnings.catch_warnings(action="ignore"):  # of more workers than cores: that is the user's choice
        return DataLoader(
            dataset,
            batch_size,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=interrupt.leave_to_parent,
        )
