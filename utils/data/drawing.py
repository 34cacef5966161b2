"""Draw the scenes of the data set shapes: several coloured shapes on a noisy background."""

import colorsys
from typing import NamedTuple, TypedDict

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4  # scenes are drawn this many times larger and then averaged, for smooth edges
MAX_OBJECTS = 4
MAX_TRIES = 50  # to find a free place for an object
Range = tuple[float, float]


class Difficulty(NamedTuple):
    """How hard the classes are to tell apart.

    radius: range, as a share of the image side. hue_spread: degrees to either side of the hue of the class.
    saturation: the lowest of an object. tint: the highest saturation of the background. num_strokes: lines on
    the background.
    """

    radius: Range
    hue_spread: float
    saturation: float
    tint: float
    num_strokes: int


DIFFICULTIES = {
    "easy": Difficulty(radius=(0.14, 0.22), hue_spread=14, saturation=0.7, tint=0.0, num_strokes=0),
    "medium": Difficulty(radius=(0.10, 0.20), hue_spread=40, saturation=0.5, tint=0.3, num_strokes=6),
    "hard": Difficulty(radius=(0.06, 0.12), hue_spread=180, saturation=0.4, tint=0.6, num_strokes=20),
}


class Place(NamedTuple):
    """The middle and the radius of an object, in pixels."""

    x: float
    y: float
    radius: float


class DrawnObject(TypedDict):
    """An object of a scene: its class, and its box x, y, w, h in pixels."""

    name: str
    bbox: list[float]


def polygon(radii: list[float], num_corners: int) -> np.ndarray:
    """Return the corners (num_corners, 2) of a shape; their distances from the centre repeat `radii`."""
    angles = 2 * np.pi * np.arange(num_corners) / num_corners - np.pi / 2
    return np.resize(radii, num_corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
# A well-known heart curve: x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, here with y downwards.
HEART_Y = -(13 * np.cos(ANGLES) - 5 * np.cos(2 * ANGLES) - 2 * np.cos(3 * ANGLES) - np.cos(4 * ANGLES))
DISC = polygon([1], 40)
CROSS = np.stack([(1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1, -1), (3, 1, 1, -1, -1, -3, -3, -1, -1, 1, 1, 3)], 1)
# Each class has an outline and maybe a hole, within the unit circle. The order sets the hues.
SHAPES = {
    "circle": [DISC],
    "triangle": [polygon([1], 3)],
    "square": [polygon([1], 4)],
    "star": [polygon([1, 0.4], 10)],
    "cross": [CROSS / 10**0.5],
    "ring": [DISC, 0.55 * DISC],
    "crescent": [DISC, 0.85 * DISC + [0.5, 0]],
    "heart": [np.stack([16 * np.sin(ANGLES) ** 3, HEART_Y], axis=1) / 17],
}


def draw_scene(
    rng: np.random.Generator, size: int, difficulty: Difficulty
) -> tuple[Image.Image, list[DrawnObject]]:
    """Draw a scene of size x size pixels; return it and its objects."""
    canvas = draw_background(rng, size * SUPERSAMPLING, difficulty)
    places: list[Place] = []
    objects = []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        place = find_place(rng, canvas.width, difficulty.radius, places)
        if place is not None:
            places.append(place)
            objects.append(draw_object(rng, canvas, place, difficulty))
    noise = rng.normal(0, 4, (size, size, 1))  # camera noise, in grey levels
    pixels = np.clip(np.asarray(canvas.reduce(SUPERSAMPLING)) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)), objects


def draw_background(rng: np.random.Generator, side: int, difficulty: Difficulty) -> Image.Image:
    """Return a square canvas of one colour, with strokes that look like parts of objects."""
    saturation = (0, difficulty.tint)
    canvas = Image.new("RGB", (side, side), draw_colour(rng, rng.uniform(0, 360), saturation, (0.2, 0.8)))
    for _ in range(difficulty.num_strokes):
        ends = rng.uniform(0, side, 4).tolist()
        width = int(side * rng.uniform(0.01, 0.05))
        colour = draw_colour(rng, rng.uniform(0, 360), saturation, (0.2, 0.9))
        ImageDraw.Draw(canvas).line(ends, fill=colour, width=width)
    return canvas


def find_place(rng: np.random.Generator, side: int, radius: Range, taken: list[Place]) -> Place | None:
    """Choose a random place for an object where it hides the middle of no other; None if none was found."""
    for _ in range(MAX_TRIES):
        r = side * rng.uniform(*radius)
        x, y = rng.uniform(r, side - r, size=2)
        if all(np.hypot(x - other.x, y - other.y) > 0.75 * (r + other.radius) for other in taken):
            return Place(x, y, r)
    return None


def draw_object(
    rng: np.random.Generator, canvas: Image.Image, place: Place, difficulty: Difficulty
) -> DrawnObject:
    """Draw an object of a random class, turned at random, on the canvas; return its class and box."""
    names = list(SHAPES)
    label = int(rng.integers(len(names)))
    hue = 360 * label / len(names) + rng.uniform(-1, 1) * difficulty.hue_spread
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", canvas.size)  # where the object is
    for corners, fill in zip(SHAPES[names[label]], (255, 0)):  # the outline, the hole
        corners_on_canvas = corners @ turn.T * place.radius + (place.x, place.y)
        ImageDraw.Draw(mask).polygon(corners_on_canvas.ravel().tolist(), fill=fill)
    canvas.paste(draw_colour(rng, hue, (difficulty.saturation, 1), (0.55, 1)), mask=mask)
    edges = mask.getbbox()
    assert edges is not None, "every object covers pixels"
    left, top, right, bottom = (edge / SUPERSAMPLING for edge in edges)
    return {"name": names[label], "bbox": [left, top, right - left, bottom - top]}


def draw_colour(
    rng: np.random.Generator, hue: float, saturation: Range, value: Range
) -> tuple[int, int, int]:
    """Return an RGB colour (0-255) of a hue in degrees; its saturation and value are random in a range."""
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * red), round(255 * green), round(255 * blue)
