"""The pixels of a Pillow image, whatever its bits, colours and transparency."""

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from utils.runtime.errors import UserError

# Values of the TIFF tags PhotometricInterpretation, PlanarConfiguration and Compression.
WHITE_IS_ZERO = 0
SEPARATE_PLANES = 2
UNCOMPRESSED = 1


def rgb_pixels(image: Image.Image, name: str) -> Tensor:
    """Return the pixels of a Pillow image, uint8 (3, H, W).

    16-bit grey becomes 8-bit grey, and what is transparent becomes white.
    Raises UserError, which starts with `name`, if the range of the image's values is unknown.
    """
    check_planes(image, name)
    image = eight_bits(image, name)
    if image.mode == "La":  # grey multiplied by its alpha, which Pillow converts to LA alone
        image = image.convert("LA")
    image = on_white(image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def check_planes(image: Image.Image, name: str) -> None:
    """Raise UserError for a TIFF image that Pillow reads as noise: it takes each byte for a pixel."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(ExifTags.Base.PlanarConfiguration) != SEPARATE_PLANES:
        return
    bits = max(tags.get(ExifTags.Base.BitsPerSample, (1,)))
    if bits > 8 and tags.get(ExifTags.Base.Compression, UNCOMPRESSED) == UNCOMPRESSED:
        fault = f"{name} stores {bits}-bit channels in separate planes without compression"
        raise UserError(f"{fault}: save it with its channels together, or leave it out")


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return a grey image of more than 8 bits as one of 8 bits, and any other image unchanged.

    Pillow itself reduces the 16-bit colours of a file, but clips 16-bit grey, so that most of it is white.
    Raises UserError, which starts with `name`, if the range of the values is unknown.
    """
    if image.mode.startswith("I;16"):
        return with_grey(image, high_byte(image))
    if image.mode == "I" and image.format == "PNG":  # how Pillow before 11.3 reads 16-bit grey
        return with_grey(image, np.asarray(image) >> 8)
    if image.mode == "I" and image.format == "PPM":
        # Pillow scales these values to 65535, whatever the file's maximum, and rounds colours likewise.
        return with_grey(image, (np.asarray(image) + 128) // 257)
    if image.mode in ("I", "F"):
        kind = "32-bit or signed" if image.mode == "I" else "floating-point"
        way_out = "save it with 8 or 16 bits per channel, or leave it out"
        raise UserError(f"{name} has {kind} values (mode {image.mode}), whose range is unknown: {way_out}")
    return image


def high_byte(image: Image.Image) -> np.ndarray:
    """Return the upper 8 bits of the values of a 16-bit grey image, uint16 (H, W), where 255 is white.

    Pillow keeps the same bits of 16-bit colours in PNG and TIFF files.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if tags.get(ExifTags.Base.BitsPerSample) == (12,):
        values = values << 4
    values = values >> 8
    if tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO:
        values = 255 - values
    return values


def with_grey(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Return an 8-bit image of grey values (H, W) that is transparent where a 16-bit image is."""
    grey = Image.fromarray(values.astype(np.uint8))
    transparent = image.info.get("transparency")  # the value, of 16 bits, that stands for transparency
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)))
    return grey


def on_white(image: Image.Image) -> Image.Image:
    """Return an image as a white page shows it; one without transparency is returned unchanged.

    The colour under a transparent part is arbitrary: most programs leave black there, others anything.
    """
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    lowest, highest = layer.getchannel("A").getextrema()
    if lowest == 255 or highest == 0:  # 0 everywhere: the channel is unused, and not a picture of nothing
        return image
    page = Image.new("RGBA", layer.size, "white")
    page.alpha_composite(layer)
    return page
