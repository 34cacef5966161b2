"""Draw where a model looked: the map of a class over the image, with a legend."""

import contextlib
import math
from collections import namedtuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.runtime.cli import one_line

# From no attention to the most: black, violet, red, orange, yellow; readable in greyscale, too.
STOPS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
CHANNELS = [np.interp(np.linspace(0, 4, 256), range(5), channel) for channel in STOPS.T]
COLOURS = np.stack(CHANNELS, axis=-1).round().astype(np.uint8)  # (256, 3)
PANEL, COLUMNS, GAP = 280, 4, 8  # a contact sheet: width of its pictures, pictures per row, space between
INK, PAPER = (30, 30, 30), (255, 255, 255)
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")
# A class's name, its score in [0, 1], its map (H, W), the text for the map's maximum, and what it measures.
ClassMap = namedtuple("ClassMap", "name score values maximum measure", defaults=["share of attention"])


def colour(values: np.ndarray) -> Image.Image:
    """Return values (H, W) in [0, 1] as colours."""
    return Image.fromarray(COLOURS[(values * 255).astype(np.uint8)])


def overlay(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Blend an image with a map (H, W), resized to fit; negative values count as 0."""
    positive = Image.fromarray(np.maximum(values, 0).astype(np.float32))
    resized = np.asarray(positive.resize(image.size, Image.Resampling.BILINEAR))
    return Image.blend(image, colour(resized / max(resized.max(), 1e-12)), 0.55)


def resize(image: Image.Image, scale: float) -> Image.Image:
    """Return an image, its sides times `scale`."""
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def panel(image: Image.Image, found: ClassMap | None, text: str = "") -> Image.Image:
    """Draw an image, enlarged if it is small, with a map over a legend (name, score, bar), or over a text."""
    image = resize(image, max(1, PANEL / max(image.size)))
    width = max(image.width, PANEL)
    size = max(12, width // 32)
    margin, middle, right = size // 2, image.height + size, width - size // 2
    canvas = Image.new("RGB", (width, image.height + 7 * margin), PAPER)
    canvas.paste(overlay(image, found.values) if found else image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(size)  # has only ASCII characters
    for file in FONTS:
        with contextlib.suppress(OSError):  # the system may lack it
            draw.font = ImageFont.truetype(file, size)
            break
    if found:
        text, scale, row = f"{found.name}  {found.score:.2f}", f"{found.measure}  0", middle + 3 * margin
        draw.text((margin, row), scale, INK, anchor="lm")
        draw.text((right, row), found.maximum, INK, anchor="rm")
        left, end = 2 * margin + draw.textlength(scale), right - margin - draw.textlength(found.maximum)
        bar = colour(np.tile(np.linspace(0, 1, round(end - left)), (size, 1)))
        canvas.paste(bar, (round(left), row - margin))
    # Cut the start of a text that is too long; the end of a path is the informative part.
    text = one_line(text)
    shorter = (text, *(f"…{text[i:]}" for i in range(len(text))))
    text = next((text for text in shorter if draw.textlength(text) <= right - margin), "…")
    draw.text((margin, middle), text, INK, anchor="lm")
    return canvas


def contact_sheet(image: Image.Image, maps: list[ClassMap], title: str) -> Image.Image:
    """Draw the image and all its maps side by side."""
    small = resize(image, min(PANEL / image.width, 2 * PANEL / image.height))
    panels = [panel(small, None, title), *(panel(small, found) for found in maps)]
    columns, rows = min(COLUMNS, len(panels)), math.ceil(len(panels) / COLUMNS)
    width, height = panels[0].width + GAP, panels[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    for index, picture in enumerate(panels):
        row, column = divmod(index, columns)
        sheet.paste(picture, (GAP + column * width, GAP + row * height))
    return sheet
