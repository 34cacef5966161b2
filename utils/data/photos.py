"""Photographs without labels: loading them, upright, in batches."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from utils.data.decoding import load_image
from utils.data.transforms import eval_transform
from utils.runtime.cli import UserError


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
