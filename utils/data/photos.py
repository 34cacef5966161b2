"""Find images without labels in files, folders and patterns, and load them."""

import glob
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from utils.data.transforms import FORMATS, eval_transform, load_image
from utils.runtime.cli import UserError


def find_photos(places: list[str], out_dir: Path | None = None) -> list[str]:
    """Return the files, and in folders the visible images, that places name, each once, none in out_dir."""
    found, extensions = [], {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    for place in places:
        files = []
        for match in [place] if os.path.exists(place) else sorted(glob.glob(place, recursive=True)):
            below = [p for p in Path(match).rglob("*") if p.suffix.lower() in extensions and p.is_file()]
            visible = [p for p in below if not any(x.startswith(".") for x in p.relative_to(match).parts)]
            files += sorted(map(str, visible)) if os.path.isdir(match) else [match]
        if not files:
            raise UserError(f"--img_dir {place} names no file, or a folder without visible images")
        found += map(os.path.normpath, files)
    if out_dir:
        prefix = f"{os.path.abspath(out_dir)}{os.sep}"
        found = [path for path in found if not os.path.abspath(path).startswith(prefix)]
    if not found:
        raise UserError(f"--out_dir {out_dir} holds the images themselves: name another folder")
    return list(dict.fromkeys(found))


class Photos(Dataset):
    """Image files, upright, resized to squares of img_size; an unreadable file gives an error message."""

    def __init__(self, paths: list[str], img_size: int, max_pixels: float):
        self.paths, self.img_size, self.max_pixels = paths, img_size, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            image = load_image(self.paths[index], self.max_pixels, exif=True)
            return index, eval_transform(image, self.img_size)
        except (UserError, OSError) as error:
            return index, str(error)


def collate_readable(samples: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, list[str]]:
    """Return the indices of the readable images, these images (B, 3, S, S), and the error messages."""
    errors = [sample for _, sample in samples if isinstance(sample, str)]
    readable = {index: sample for index, sample in samples if isinstance(sample, Tensor)}
    images = default_collate(list(readable.values())) if readable else torch.empty(0)
    return list(readable), images, errors
