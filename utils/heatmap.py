"""Pictures of where a model looked: a class's map laid over the image, with a legend."""

import contextlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.runtime.cli import one_line

# From no attention to the most: black, violet, red, orange, yellow, told apart by brightness alone, too.
COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)
OPACITY = 0.55
NARROWEST = 240  # pixels that a legend needs
PANEL, COLUMNS = 280, 4  # width of a picture on a contact sheet, and how many stand in a row
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class ClassMap:
    """Where a class was seen: its name, its score in [0, 1], its map (H, W), and what its maximum means."""

    name: str
    score: float
    values: np.ndarray
    maximum: str


def colour(values: np.ndarray) -> Image.Image:
    """Turn values (H, W) in [0, 1] into their colours."""
    steps = np.linspace(0, 1, 256)
    stops = np.linspace(0, 1, len(COLOURS))
    table = np.stack([np.interp(steps, stops, COLOURS[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(table.round().astype(np.uint8)[(values * 255).astype(np.uint8)])


def upsample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a map (h, w) to an image's size (W, H), bilinearly; returns (H, W) float32."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def overlay(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Lay a map (H, W) over an image, brought to its size; what is below 0 counts as 0."""
    fine = upsample(np.maximum(values, 0), image.size)
    return Image.blend(image, colour(fine / max(fine.max(), 1e-12)), OPACITY)


def panel(image: Image.Image, found: ClassMap | None, title: str = "") -> Image.Image:
    """Return the image, a class's map on it, above a legend: class, score and colour bar, or the title."""
    picture = overlay(image, found.values) if found else image
    width = max(picture.width, NARROWEST)
    size = max(12, width // 32)
    font, margin, bar_width = load_font(size), size // 2, width // 5
    canvas = Image.new("RGB", (width, picture.height + 2 * size), PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw, middle = ImageDraw.Draw(canvas), picture.height + size
    free = width - 2 * margin
    if found:
        most = draw.textlength(found.maximum, font)
        right = width - margin - most
        left = right - margin - bar_width
        bar = colour(np.tile(np.linspace(0, 1, bar_width), (size, 1)))
        canvas.paste(bar, (round(left), middle - size // 2))
        draw.text((right, middle), found.maximum, INK, font, anchor="lm")
        draw.text((left - margin, middle), "0", INK, font, anchor="rm")
        free = left - 2 * size
    score = f"  {found.score:.2f}" if found else ""
    name = one_line(found.name if found else title)
    text = shorten(draw, name, font, free - draw.textlength(score, font)) + score
    draw.text((margin, middle), text, INK, font, anchor="lm")
    return canvas


def load_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font of many alphabets if the system has one, else Pillow's own, of ASCII."""
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def shorten(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont, width: float) -> str:
    """Return as much of a text as fits, the end of it: of a path that says most."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"…{text}", font) > width:
        text = text[1:]
    return f"…{text}"


def contact_sheet(image: Image.Image, maps: list[ClassMap], title: str) -> Image.Image:
    """Return the image and all its maps side by side."""
    scale = min(PANEL / image.width, 2 * PANEL / image.height)
    size = [max(1, round(side * scale)) for side in image.size]
    small = image.resize(size, Image.Resampling.BICUBIC)
    panels = [panel(small, None, title), *(panel(small, found) for found in maps)]
    columns, gap = min(COLUMNS, len(panels)), 8
    width, height = panels[0].width + gap, panels[0].height + gap
    sheet = Image.new("RGB", (columns * width + gap, math.ceil(len(panels) / columns) * height + gap), PAPER)
    for index, picture in enumerate(panels):
        sheet.paste(picture, (gap + index % columns * width, gap + index // columns * height))
    return sheet
