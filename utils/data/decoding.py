"""Decode image files to uint8 tensors."""

import contextlib
import functools
import os
import struct
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from utils.data.pixels import rgb_pixels
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_fetched
from utils.runtime.limits import MAX_PIXELS
from utils.runtime.paths import existing_spelling

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29
    decode_jpeg = None

# Pillow also reads formats that are programs, such as PostScript, and starts an interpreter for them.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
START_BYTES = 16  # of a file, which tell its format
# Axes of an image (3, H, W) to flip for each EXIF orientation; from 5 on, first swap height and width.
FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


@functools.cache
def report_slow_decoder() -> None:
    """Say, once, that loading is slower if torchvision lacks its decoder; the pixels are the same."""
    if not decode_jpeg:
        print("this torchvision has no decode_jpeg: Pillow decodes JPEG files, which is slower")


def load_image(path: str, max_pixels: float = MAX_PIXELS, exif: bool = False) -> Tensor:
    """Decode an image, or the first picture of an animation.

    16-bit grey becomes 8-bit grey, and what is transparent becomes white; else the pixels are those of
    Pillow's convert("RGB"). path: its accents may be spelled in another Unicode form than on the disk.
    max_pixels: largest width x height to decode, whatever Pillow's own limit is. exif: whether to apply the
    EXIF orientation.
    Returns uint8 (3, H, W). Raises UserError if the file is missing, too large or not an image, or if the
    range of its values is unknown.
    """
    path = existing_spelling(path)
    if not os.path.isfile(path):
        raise UserError(f"{path} is {'a folder or a device' if os.path.exists(path) else 'missing'}")
    fault = f"{path} cannot be read as an image: replace it, or leave it out"
    with reporting_errors(fault), open(path, "rb") as file, open_image(file, path) as image:
        check_size(image, path, max_pixels)
        if decode_jpeg and image.format == "JPEG" and image.mode in ("RGB", "L"):
            # Pillow decodes with libjpeg-turbo too, but its own image object makes it a quarter slower.
            pixels = decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)), ImageReadMode.RGB)
        else:
            pixels = rgb_pixels(image, path)
        return upright(pixels, image) if exif else pixels


def open_image(file: IO[bytes], path: str) -> Image.Image:
    """Read the header of an image file, as Image.open does; UnidentifiedImageError for other files.

    Image.open also refuses images above Image.MAX_IMAGE_PIXELS. That limit belongs to the whole process, so
    this function neither obeys nor changes it: see check_size.
    """
    for name in possible_formats(file.read(START_BYTES)):
        read_header, _ = Image.OPEN[name]
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is of another format
            file.seek(0)
            return read_header(file, path)
    check_fetched(path)
    raise UnidentifiedImageError(f"none of {', '.join(IMAGE_FORMATS)}")


def possible_formats(start: bytes) -> list[str]:
    """Return the formats of IMAGE_FORMATS that a file with these first bytes may have."""
    Image.init()  # registers all formats, once
    possible = []
    for name in IMAGE_FORMATS:
        _, accepts = Image.OPEN.get(name, (None, None))
        answer = accepts(start) if accepts else False
        # The answer is a text, the reason, if this Pillow was built without the format.
        if answer and not isinstance(answer, str):
            possible.append(name)
    return possible


def check_size(image: Image.Image, path: str, max_pixels: float) -> None:
    """Raise UserError if decoding an image would make more pixels than max_pixels."""
    tags = getattr(image, "tag_v2", {})  # a tile of a TIFF is decoded whole
    width = max(image.width, int(tags.get(ExifTags.Base.TileWidth, 0)))
    height = max(image.height, int(tags.get(ExifTags.Base.TileLength, 0)))
    if width * height > max_pixels:
        fault = f"{path}: {width} x {height} pixels are above the limit, max_pixels {max_pixels}"
        raise UserError(f"{fault}: set a higher limit if you trust the image, or leave it out")


def upright(pixels: Tensor, image: Image.Image) -> Tensor:
    """Turn an image's pixels (3, H, W) as its EXIF orientation says; ignore damaged EXIF data."""
    # ImageOps.exif_transpose also writes the EXIF data again, and so fails for some damaged data.
    orientation = None
    with contextlib.suppress(Exception):  # the type depends on the damage
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation not in FLIPS:
        return pixels
    turned = pixels.transpose(1, 2) if orientation >= 5 else pixels
    return turned.flip(FLIPS[orientation])
