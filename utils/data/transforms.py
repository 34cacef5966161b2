"""Turn decoded images into uint8 squares, in training cropped and flipped at random."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def random_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) as RandomResizedCrop does: scale 0.7-1, ratio 3/4-4/3."""
    # RandomResizedCrop draws from torch's global state, but a sample depends on seed, epoch and row alone.
    # Seeding that state for each sample would also be slower.
    for _ in range(10):
        area = width * height * rng.uniform(0.7, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w = round((area * ratio) ** 0.5)
        h = round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w, endpoint=True))
            top = int(rng.integers(height - h, endpoint=True))
            return left, top, left + w, top + h
    # No box fits a long image, so take its middle at the nearest allowed ratio.
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    left = (width - w) // 2
    top = (height - h) // 2
    return left, top, left + w, top + h


def cut_out(image: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """Return a part of an image (3, H, W) as Pillow's crop does: pixels outside the image are black."""
    part = image.new_zeros(bottom - top, right - left, 3).permute(2, 0, 1)
    inside = image[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    y = max(0, -top)
    x = max(0, -left)
    part[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return part


def train_transform(image: Tensor, size: int, rng: np.random.Generator, crop: bool = True) -> Tensor:
    """Crop (if crop), resize and flip an image (3, H, W) at random; returns uint8 (3, size, size).

    docs/own-data.md shows how to add an augmentation here.
    """
    if crop:
        left, top, right, bottom = random_crop(image.shape[2], image.shape[1], rng)
        image = image[:, top:bottom, left:right]
    image = eval_transform(image, size)
    if rng.random() < 0.5:
        image = image.flip(2)
    return image


def eval_transform(image: Tensor, size: int) -> Tensor:
    """Resize an image (3, H, W) to a square; returns uint8 (3, size, size)."""
    # The values are within 1/255 of Pillow's, or within 2/255 for about one in tens of millions.
    # Strides in channels_last order, which image[None] lacks, select PyTorch's vectorised kernel.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0]
