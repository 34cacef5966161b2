"""Draw where a model looked: the map of a class over the image, with a legend."""

import contextlib
import math
from collections import namedtuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.runtime.cli import one_line

# From no attention to the most: black, violet, red, orange, yellow. Brightness alone tells them apart.
STOPS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
CHANNELS = [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, 5), channel) for channel in STOPS.T]
COLOURS = np.stack(CHANNELS, axis=-1).round().astype(np.uint8)  # (256, 3)
OPACITY = 0.55
MIN_WIDTH = 240  # a legend needs this many pixels
PANEL, COLUMNS, GAP = 280, 4, 8  # a contact sheet: width of its pictures, pictures per row, space between
INK, PAPER = (30, 30, 30), (255, 255, 255)


# A class's name, its score in [0, 1], its map (H, W) and the text for the map's maximum.
ClassMap = namedtuple("ClassMap", ["name", "score", "values", "maximum"])


def colour(values: np.ndarray) -> Image.Image:
    """Return values (H, W) in [0, 1] as colours."""
    return Image.fromarray(COLOURS[(values * 255).astype(np.uint8)])


def overlay(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Blend an image with a map (H, W), resized to fit; negative values count as 0."""
    positive = Image.fromarray(np.maximum(values, 0).astype(np.float32))
    resized = np.asarray(positive.resize(image.size, Image.Resampling.BILINEAR))
    return Image.blend(image, colour(resized / max(resized.max(), 1e-12)), OPACITY)


def panel(image: Image.Image, found: ClassMap | None, title: str = "") -> Image.Image:
    """Draw an image with a class's map over a legend (name, score, colour bar), or over a title alone."""
    width = max(image.width, MIN_WIDTH)
    size = max(12, width // 32)
    margin, middle = size // 2, image.height + size
    canvas = Image.new("RGB", (width, image.height + 2 * size), PAPER)
    canvas.paste(overlay(image, found.values) if found else image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    draw.font = load_font(size)
    name, score, text_width = title, "", width - 2 * margin
    if found:
        name, score, bar_width = found.name, f"  {found.score:.2f}", width // 5
        right = width - margin - draw.textlength(found.maximum)
        left = right - margin - bar_width
        bar = colour(np.tile(np.linspace(0, 1, bar_width), (size, 1)))
        canvas.paste(bar, (round(left), middle - size // 2))
        draw.text((right, middle), found.maximum, INK, anchor="lm")
        draw.text((left - margin, middle), "0", INK, anchor="rm")
        text_width = left - 2 * size
    text = shorten(draw, one_line(name), text_width - draw.textlength(score)) + score
    draw.text((margin, middle), text, INK, anchor="lm")
    return canvas


def load_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font for many alphabets if the system has one, else Pillow's own font for ASCII."""
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def shorten(draw: ImageDraw.ImageDraw, text: str, width: float) -> str:
    """Cut the start of a text until it is at most `width` pixels wide: the end of a path says most."""
    candidates = [text, *(f"…{text[i:]}" for i in range(len(text)))]
    return next((candidate for candidate in candidates if draw.textlength(candidate) <= width), "…")


def contact_sheet(image: Image.Image, maps: list[ClassMap], title: str) -> Image.Image:
    """Draw the image and all its maps side by side."""
    scale = min(PANEL / image.width, 2 * PANEL / image.height)
    size = [max(1, round(side * scale)) for side in image.size]
    small = image.resize(size, Image.Resampling.BICUBIC)
    panels = [panel(small, None, title), *(panel(small, found) for found in maps)]
    columns, rows = min(COLUMNS, len(panels)), math.ceil(len(panels) / COLUMNS)
    width, height = panels[0].width + GAP, panels[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    for index, picture in enumerate(panels):
        row, column = divmod(index, columns)
        sheet.paste(picture, (GAP + column * width, GAP + row * height))
    return sheet
