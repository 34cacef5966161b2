"""Draw where a model looked: the map of a class over the image, with a legend."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from utils.inference.lettering import draw_text, shorten, text_width
from utils.runtime.errors import one_line

# From no attention to the most: black, violet, red, orange, yellow. Each is lighter, also in greyscale.
STOPS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
CHANNELS = [np.interp(np.linspace(0, 4, 256), range(5), channel) for channel in STOPS.T]
COLOURS = np.stack(CHANNELS, axis=-1).round().astype(np.uint8)  # (256, 3)
# A map with few places is drawn as blocks: a smooth one would show a hill that the network never computed.
MAX_BLOCKS = 6
MIN_PICTURE_SIDE = 280  # pixels: a smaller image is enlarged
# A contact sheet fills a page 7.2 inches wide when it is printed. It has PANELS_PER_ROW pictures in a row,
# each PANEL pixels wide, GAP pixels apart.
DPI = 300
PANEL = 530
PANELS_PER_ROW = 4
GAP = 10
PANEL_TEXT = 30  # pixels: 7 points in print
PAPER = (255, 255, 255)


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
    """Blend an image with a map (H, W), enlarged to fit; negative values count as 0."""
    is_coarse = max(values.shape) <= MAX_BLOCKS
    enlarging = Image.Resampling.NEAREST if is_coarse else Image.Resampling.BILINEAR
    positive = Image.fromarray(np.maximum(values, 0).astype(np.float32))
    enlarged = np.asarray(positive.resize(image.size, enlarging))
    return Image.blend(image, colour(enlarged / max(enlarged.max(), 1e-12)), 0.55)


def resize(image: Image.Image, scale: float) -> Image.Image:
    """Return an image, its sides times `scale`."""
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Return an image whose longer side has at most max_side pixels."""
    longer = max(image.size)
    return image if longer <= max_side else resize(image, max_side / longer)


def single_picture(image: Image.Image, class_map: ClassMap) -> Image.Image:
    """Draw the map of a class over an image, enlarged if it is small, with a legend below it."""
    image = resize(image, max(1, MIN_PICTURE_SIDE / max(image.size)))
    width = max(image.width, MIN_PICTURE_SIDE)
    return panel(image, class_map, width, text_size=max(12, width // 32))


def panel(
    image: Image.Image, class_map: ClassMap | None, width: int, text_size: int, text: str = ""
) -> Image.Image:
    """Draw an image in the middle of a panel, and a line of text below it.

    With a class_map the image is blended with the map, the text is the name and score of the class, and below
    it is a legend of the colours. width, text_size: in pixels.
    """
    margin = text_size // 2
    canvas = Image.new("RGB", (width, image.height + 7 * margin), PAPER)
    picture = overlay(image, class_map.values) if class_map else image
    canvas.paste(picture, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    row = image.height + text_size
    if class_map:
        text = f"{class_map.name}  {class_map.score:.2f}"
        draw_legend(canvas, class_map, row + 3 * margin, text_size)
    text = shorten(one_line(text), text_size, width - 2 * margin)
    draw_text(draw, (margin, row), text, text_size)
    return canvas


def draw_legend(canvas: Image.Image, class_map: ClassMap, row: int, text_size: int) -> None:
    """Draw the bar of colours between its ends in words, around the height `row`."""
    draw = ImageDraw.Draw(canvas)
    margin = text_size // 2
    start_text = f"{class_map.measure}  0"
    end_text_start = canvas.width - margin - text_width(class_map.maximum, text_size)
    draw_text(draw, (margin, row), start_text, text_size)
    draw_text(draw, (end_text_start, row), class_map.maximum, text_size)
    bar_start = 2 * margin + text_width(start_text, text_size)
    shades = np.linspace(0, 1, round(end_text_start - margin - bar_start))
    bar = colour(np.tile(shades, (text_size, 1)))
    canvas.paste(bar, (round(bar_start), row - margin))


def contact_sheet(image: Image.Image, maps: list[ClassMap], title: str) -> Image.Image:
    """Draw the image and all its maps side by side, large enough for print at DPI."""
    small = resize(image, min(PANEL / image.width, 2 * PANEL / image.height))
    panels = [panel(small, None, PANEL, PANEL_TEXT, title)]
    panels += [panel(small, class_map, PANEL, PANEL_TEXT) for class_map in maps]
    num_columns = min(PANELS_PER_ROW, len(panels))
    num_rows = math.ceil(len(panels) / PANELS_PER_ROW)
    width = PANEL + GAP
    height = panels[0].height + GAP
    sheet = Image.new("RGB", (num_columns * width + GAP, num_rows * height + GAP), PAPER)
    for index, picture in enumerate(panels):
        row, column = divmod(index, num_columns)
        sheet.paste(picture, (GAP + column * width, GAP + row * height))
    return sheet
