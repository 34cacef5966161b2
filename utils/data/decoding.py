"""Decode image files to uint8 tensors."""

import contextlib
import functools
import math
import os
import warnings

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from utils.runtime.cli import UserError, reporting_errors

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29
    decode_jpeg = None

Image.MAX_IMAGE_PIXELS = None  # --max_pixels is the limit
# Pillow also reads formats that are programs, such as PostScript, and starts an interpreter for them.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
# Axes of an image (3, H, W) to flip for each EXIF orientation; from 5 on, first swap height and width.
FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


@functools.cache
def report_slow_decoder() -> None:
    """Say, once, that loading is slower if torchvision lacks its decoder; the pixels are the same."""
    if not decode_jpeg:
        print("this torchvision has no decode_jpeg: Pillow decodes JPEG files, which is slower")


def load_image(path: str, max_pixels: float = math.inf, exif: bool = False) -> Tensor:
    """Decode an image, or the first picture of an animation, as Pillow's convert("RGB"): uint8 (3, H, W).

    That drops alpha and clips 16-bit grey to 8 bits. exif: whether to apply the EXIF orientation.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is {'a folder or a device' if os.path.exists(path) else 'missing'}")
    fault = f"{path} cannot be read as an image: replace it, or leave it out"
    quiet = warnings.catch_warnings(action="ignore")  # decoders warn about damage that they can repair
    with reporting_errors(fault), quiet, Image.open(path, formats=FORMATS) as image:  # reads only the header
        tags = getattr(image, "tag_v2", {})  # a tile of a TIFF is decoded whole
        w, h = max(image.width, int(tags.get(322, 0))), max(image.height, int(tags.get(323, 0)))
        if w * h > max_pixels:
            raise UserError(f"{path}: {w} x {h} pixels are above --max_pixels {max_pixels}: raise or skip it")
        if decode_jpeg and image.format == "JPEG" and image.mode in ("RGB", "L"):
            # Pillow decodes with libjpeg-turbo too, but its own image object makes it a quarter slower.
            pixels = decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)), ImageReadMode.RGB)
        else:
            pixels = rgb_pixels(image)
        return upright(pixels, image) if exif else pixels


def rgb_pixels(image: Image.Image) -> Tensor:
    """Return the pixels of a Pillow image, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def upright(pixels: Tensor, image: Image.Image) -> Tensor:
    """Return an image's pixels (3, H, W) turned as its EXIF orientation says; a damaged one is ignored."""
    orientation = None
    with contextlib.suppress(Exception):  # the type depends on the damage
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation not in FLIPS:
        return pixels
    return (pixels.transpose(1, 2) if orientation >= 5 else pixels).flip(FLIPS[orientation])
