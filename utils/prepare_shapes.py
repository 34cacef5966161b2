"""Make the built-in data set shapes: images of several coloured shapes on a noisy background.

python utils/prepare_shapes.py [--difficulty easy|medium|hard]
"""

import colorsys
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.label_files import write_labels
from utils.runtime.cli import Parser, UserError, given_path, number, run_script
from utils.runtime.files import check_folder, read_json, write_json_list

SUPERSAMPLING = 4  # scenes are drawn this many times larger and then averaged, for smooth edges
MAX_OBJECTS = 4
Range = tuple[float, float]
Place = tuple[float, float, float]  # centre x, y and radius of an object, in pixels


class Difficulty(NamedTuple):
    """How hard the objects are to find and to tell apart."""

    radius: Range  # range, as a share of the image side
    hue_spread: float  # degrees to either side of the hue of the class
    saturation: float  # lowest saturation of the objects
    tint: float  # highest saturation of the background
    num_strokes: int  # lines behind the objects


DIFFICULTIES = {
    "easy": Difficulty(radius=(0.14, 0.22), hue_spread=14, saturation=0.7, tint=0.0, num_strokes=0),
    "medium": Difficulty(radius=(0.10, 0.20), hue_spread=40, saturation=0.5, tint=0.3, num_strokes=6),
    "hard": Difficulty(radius=(0.06, 0.12), hue_spread=180, saturation=0.4, tint=0.6, num_strokes=20),
}


def polygon(radii: list[float], num_corners: int) -> np.ndarray:
    """Return the corners (num_corners, 2) of a shape; their distances from the centre repeat `radii`."""
    angles = 2 * np.pi * np.arange(num_corners) / num_corners - np.pi / 2
    return np.resize(radii, num_corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


T = np.linspace(0, 2 * np.pi, 40, endpoint=False)
HEART_Y = -(13 * np.cos(T) - 5 * np.cos(2 * T) - 2 * np.cos(3 * T) - np.cos(4 * T))
HEART = np.stack([16 * np.sin(T) ** 3, HEART_Y], axis=1) / 17
DISC = polygon([1], 40)
CROSS = np.stack([(1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1, -1), (3, 1, 1, -1, -1, -3, -3, -1, -1, 1, 1, 3)], 1)
# Each class has an outline and maybe a hole, within the unit circle. Its position here sets its hue.
SHAPES = {
    "circle": [DISC],
    "triangle": [polygon([1], 3)],
    "square": [polygon([1], 4)],
    "star": [polygon([1, 0.4], 10)],
    "cross": [CROSS / 10**0.5],
    "ring": [DISC, 0.55 * DISC],
    "crescent": [DISC, 0.85 * DISC + [0.5, 0]],
    "heart": [HEART],
}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description="Make the data set shapes: images with several drawn objects, and labels.")
    parser.add_argument(
        "--difficulty", choices=DIFFICULTIES, default="easy", help="how alike the classes look"
    )
    parser.add_argument("--num_train", type=number(int, 1), default=3000, help="number of training images")
    parser.add_argument("--num_test", type=number(int, 1), default=1000, help="number of test images")
    parser.add_argument("--size", type=number(int, 16), default=64, help="side of an image in pixels")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="same seed, same files")
    parser.add_argument("--out_dir", type=given_path, default=Path("data/shapes"), help="folder to write")
    args = parser.parse_args(argv)
    make_shapes(args.out_dir, args.num_train, args.num_test, args.size, args.difficulty, args.seed)


def make_shapes(out_dir: Path, num_train: int, num_test: int, size: int, difficulty: str, seed: int) -> None:
    """Write images/, classes.json, train.json and test.json to out_dir; replace those of an earlier call.

    size: image side in pixels. Raises UserError if out_dir cannot be written or holds other files.
    """
    check_folder(out_dir, "--out_dir")
    classes, part = out_dir / "classes.json", out_dir / "images.part"
    is_ours = classes.exists() and read_json(classes) == list(SHAPES)
    if not is_ours and out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"--out_dir {out_dir} holds something other than a data set of shapes: name another")
    write_json_list(classes, SHAPES)
    shutil.rmtree(part, ignore_errors=True)
    try:
        splits = {}
        for split, count in (("train", num_train), ("test", num_test)):
            seeds = [(seed, len(splits), index) for index in range(count)]
            splits[f"{split}.json"] = draw_split(out_dir, split, size, DIFFICULTIES[difficulty], seeds)
        for name in splits:  # never leave labels beside the images of another seed
            (out_dir / name).unlink(missing_ok=True)
        shutil.rmtree(out_dir / "images", ignore_errors=True)
        part.rename(out_dir / "images")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_labels(out_dir, list(SHAPES), splits)


def draw_split(folder: Path, split: str, size: int, difficulty: Difficulty, seeds: list[tuple]) -> list[dict]:
    """Draw an image per seed into <folder>/images.part/<split>/; return the entries of the label file."""
    (folder / "images.part" / split).mkdir(parents=True)
    entries = []
    for index, seed in enumerate(tqdm(seeds, desc=f"shapes {split}", unit="img", disable=None)):
        image, objects = draw_scene(default_rng(seed), size, difficulty)
        name = f"{split}/{index:05d}.jpg"
        image.save(folder / "images.part" / name, quality=95, subsampling=0)
        present = {item["name"] for item in objects}
        target = [int(shape in present) for shape in SHAPES]
        img_path = (folder / "images" / name).as_posix()
        entries.append({"target": target, "img_path": img_path, "objects": objects})
    return entries


def draw_scene(rng: Generator, size: int, difficulty: Difficulty) -> tuple[Image.Image, list[dict]]:
    """Draw a scene of size x size pixels; return it and its objects, {name, bbox: [x, y, w, h]}."""
    side = size * SUPERSAMPLING
    canvas = draw_background(rng, side, difficulty)
    names, objects, places = list(SHAPES), [], []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        place = find_place(rng, side, difficulty.radius, places)
        if place is None:
            continue
        places.append(place)
        label = int(rng.integers(len(names)))
        hue = 360 * label / len(names) + rng.uniform(-1, 1) * difficulty.hue_spread
        mask = draw_mask(side, names[label], *place, angle=rng.uniform(0, 2 * np.pi))
        canvas.paste(draw_colour(rng, hue, (difficulty.saturation, 1), (0.55, 1)), mask=mask)
        left, top, right, bottom = (edge / SUPERSAMPLING for edge in mask.getbbox())
        objects.append({"name": names[label], "bbox": [left, top, right - left, bottom - top]})
    noise = rng.normal(0, 4, (size, size, 1))  # camera noise, in grey levels
    pixels = np.clip(np.asarray(canvas.reduce(SUPERSAMPLING)) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)), objects


def draw_background(rng: Generator, side: int, difficulty: Difficulty) -> Image.Image:
    """Return a canvas of side x side pixels with strokes that look like parts of objects."""
    saturation = (0, difficulty.tint)
    canvas = Image.new("RGB", (side, side), draw_colour(rng, rng.uniform(0, 360), saturation, (0.2, 0.8)))
    for _ in range(difficulty.num_strokes):
        points = [tuple(point) for point in rng.uniform(0, side, (2, 2))]
        width = int(side * rng.uniform(0.01, 0.05))
        fill = draw_colour(rng, rng.uniform(0, 360), saturation, (0.2, 0.9))
        ImageDraw.Draw(canvas).line(points, fill=fill, width=width)
    return canvas


def find_place(rng: Generator, side: int, radius: Range, places: list[Place]) -> Place | None:
    """Draw a place where an object hides the middle of no other; None if 50 tries find no such place."""
    for _ in range(50):
        r = side * rng.uniform(*radius)
        x, y = rng.uniform(r, side - r, size=2)
        if all(np.hypot(x - px, y - py) > 0.75 * (r + pr) for px, py, pr in places):
            return x, y, r
    return None


def draw_mask(side: int, name: str, x: float, y: float, r: float, angle: float) -> Image.Image:
    """Return the mask (side x side) of a shape of radius r at (x, y), turned by `angle` radians."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (side, side))
    for corners, fill in zip(SHAPES[name], (255, 0)):
        ImageDraw.Draw(mask).polygon([tuple(p) for p in corners @ turn.T * r + (x, y)], fill=fill)
    return mask


def draw_colour(rng: Generator, hue: float, saturation: Range, value: Range) -> tuple[int, int, int]:
    """Return an RGB colour (0-255) of a hue in degrees; its saturation and value are random in a range."""
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1, rng.uniform(*saturation), rng.uniform(*value))
    return tuple(round(255 * channel) for channel in rgb)


if __name__ == "__main__":
    run_script(main)
