"""From an image file to the uint8 tensor that a network is given: Pillow's pixels, at twice its speed."""

import math
import os
import struct
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils.runtime.cli import UserError

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; Pillow decodes the same pixels, more slowly
    decode_jpeg = None

Image.MAX_IMAGE_PIXELS = None  # --max_pixels is the limit
# Of what Pillow reads, the formats that are pictures and no programs, as PostScript is.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")


def load_image(path: str, max_pixels: float = math.inf) -> Tensor:
    """Decode an image, the first one of an animation, to RGB, uint8 (3, H, W).

    Pixels are those of Pillow's convert("RGB"): alpha is dropped, EXIF orientation not applied and 16-bit
    grey clipped to 8 bits.
    Raises UserError, naming the file, if it is missing, damaged or has more than max_pixels.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"{path} is {'a folder or a device, no image' if os.path.exists(path) else 'missing'}"
        )
    try:
        # Decoders warn of what they can mend. The header alone is read here.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            # A TIFF is decoded by whole tiles, which may be larger than the image.
            width, height = (max(n, tile) for n, tile in zip(image.size, tile_size(image)))
            if width * height > max_pixels:
                size = f"its {width} x {height} pixels are above --max_pixels {max_pixels}"
                raise UserError(f"{path}: {size}: give a larger limit if you trust it, or leave it out")
            if decode_jpeg and image.format == "JPEG" and image.mode in ("RGB", "L"):
                # libjpeg-turbo, as in Pillow, without the way through Pillow's own image: a quarter faster.
                return decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)), ImageReadMode.RGB)
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, RuntimeError, TypeError, struct.error) as error:
        if "t allocate memory" in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = reason.split(", ", 2)[-1] if reason.startswith("decode_jpeg") else reason  # a place in C++
        raise UserError(
            f"{path} cannot be read as an image ({reason}): replace it, or leave it out"
        ) from None


def tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of a TIFF's tiles or strips, (0, 0) for other formats."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(322, 0)), int(tags.get(323, 0))


def random_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) as RandomResizedCrop does: scale 0.7-1, ratio 3/4-4/3."""
    for _ in range(10):
        area = width * height * rng.uniform(0.7, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w, endpoint=True), rng.integers(height - h, endpoint=True)
            return left, top, left + w, top + h
    # No box fitted, so the image is long: take its middle, at the allowed ratio nearest to its own.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_transform(image: Tensor, size: int, rng: np.random.Generator, crop: bool = True) -> Tensor:
    """Crop, if asked to, resize and flip an image (3, H, W) at random; returns uint8 (3, size, size)."""
    if crop:
        left, top, right, bottom = random_crop(image.shape[2], image.shape[1], rng)
        image = image[:, top:bottom, left:right]
    image = eval_transform(image, size)
    return image.flip(2) if rng.random() < 0.5 else image


def eval_transform(image: Tensor, size: int) -> Tensor:
    """Resize an image (3, H, W) to a square, whatever its aspect ratio; returns uint8 (3, size, size).

    Bilinear with antialiasing, as Pillow's resize: more than 95 % of the values are the same and the rest are
    off by 1, but for one in tens of millions, off by 2.
    """
    # A batch of one whose strides say channels_last, as its pixels lie in memory: the vectorised kernel.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0]
