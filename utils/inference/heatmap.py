"""Draw where a model looked: the map of a class over the image, with a legend."""

import contextlib
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.runtime.errors import one_line

# From no attention to the most: black, violet, red, orange, yellow. Each is lighter, also in greyscale.
STOPS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
CHANNELS = [np.interp(np.linspace(0, 4, 256), range(5), channel) for channel in STOPS.T]
COLOURS = np.stack(CHANNELS, axis=-1).round().astype(np.uint8)  # (256, 3)
# A contact sheet: the width of its pictures, the pictures in a row, and the space between them.
PANEL = 280
COLUMNS = 4
GAP = 8
INK = (30, 30, 30)
PAPER = (255, 255, 255)
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")


class ClassMap(NamedTuple):
    """What a picture shows of a class: its score in [0, 1], its map (H, W), and two texts for the legend.

    maximum: the largest value of the map, in words. measure: what the values are.
    """

    name: str
    score: float
    values: np.ndarray
    maximum: str
    measure: str = "share of attention"


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
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def panel(image: Image.Image, class_map: ClassMap | None, text: str = "") -> Image.Image:
    """Draw an image, enlarged if it is small, and a line of text below it.

    With a class_map the image is blended with the map, the text is the name and score of the class, and below
    it is a legend of the colours.
    """
    image = resize(image, max(1, PANEL / max(image.size)))
    width = max(image.width, PANEL)
    text_size = max(12, width // 32)
    margin = text_size // 2
    canvas = Image.new("RGB", (width, image.height + 7 * margin), PAPER)
    picture = overlay(image, class_map.values) if class_map else image
    canvas.paste(picture, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    draw.font = find_font(text_size)
    row = image.height + text_size
    if class_map:
        text = f"{class_map.name}  {class_map.score:.2f}"
        draw_legend(canvas, draw, class_map, row + 3 * margin, text_size)
    text = shorten(one_line(text), draw, width - 2 * margin)
    draw.text((margin, row), text, INK, anchor="lm")
    return canvas


def find_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font that this system has, or Pillow's own, which has only ASCII characters."""
    for file in FONTS:
        with contextlib.suppress(OSError):  # the system lacks it
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


def draw_legend(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, class_map: ClassMap, row: int, text_size: int
) -> None:
    """Draw the bar of colours between its ends in words, around the height `row`."""
    margin = text_size // 2
    right = canvas.width - margin
    start_text = f"{class_map.measure}  0"
    draw.text((margin, row), start_text, INK, anchor="lm")
    draw.text((right, row), class_map.maximum, INK, anchor="rm")
    bar_start = 2 * margin + draw.textlength(start_text)
    bar_end = right - margin - draw.textlength(class_map.maximum)
    shades = np.linspace(0, 1, round(bar_end - bar_start))
    bar = colour(np.tile(shades, (text_size, 1)))
    canvas.paste(bar, (round(bar_start), row - margin))


def shorten(text: str, draw: ImageDraw.ImageDraw, width: float) -> str:
    """Cut the start of a text so that the rest fits: the end of a path says the most."""
    if draw.textlength(text) <= width:
        return text
    for start in range(len(text)):
        shorter = f"…{text[start:]}"
        if draw.textlength(shorter) <= width:
            return shorter
    return "…"


def contact_sheet(image: Image.Image, maps: list[ClassMap], title: str) -> Image.Image:
    """Draw the image and all its maps side by side."""
    small = resize(image, min(PANEL / image.width, 2 * PANEL / image.height))
    panels = [panel(small, None, title)]
    panels += [panel(small, class_map) for class_map in maps]
    num_columns = min(COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / COLUMNS)
    width = panels[0].width + GAP
    height = panels[0].height + GAP
    sheet = Image.new("RGB", (num_columns * width + GAP, num_rows * height + GAP), PAPER)
    for index, picture in enumerate(panels):
        row, column = divmod(index, num_columns)
        sheet.paste(picture, (GAP + column * width, GAP + row * height))
    return sheet
