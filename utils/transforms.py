"""From an image file to the uint8 tensor that a network is given."""

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from utils.cli import UserError


def load_image(path: str) -> Image.Image:
    """Decode an image to RGB as Pillow does; UserError, naming the file, if it is missing or damaged.

    Alpha is dropped, EXIF orientation not applied and 16-bit grey clipped to 8 bits.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as an image: {reason}") from None


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


def train_transform(image: Image.Image, size: int, rng: np.random.Generator) -> Tensor:
    """Crop, resize and flip at random; returns uint8 (3, size, size)."""
    image = image.crop(random_crop(*image.size, rng)).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pil_to_tensor(image)


def eval_transform(image: Image.Image, size: int) -> Tensor:
    """Resize to a square, whatever the aspect ratio; returns uint8 (3, size, size)."""
    return pil_to_tensor(image.resize((size, size), Image.Resampling.BILINEAR))
