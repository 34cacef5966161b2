"""Make the built-in data set: photographs of nothing, with several coloured shapes in each.

python utils/prepare_shapes.py [--difficulty easy|medium|hard]
"""

import argparse
import colorsys
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.label_files import write_labels
from utils.runtime.cli import Parser, UserError, given_path, number, run
from utils.runtime.files import check_folder, read_json, write_json_list

SUPERSAMPLING = 4  # scenes are drawn this many times larger and averaged down, so that edges are smooth


@dataclass(frozen=True)
class Difficulty:
    """How hard the objects are to find and tell apart.

    radius: range of an object's, as share of the image side. hue_spread: degrees to either side of a class's
    hue. saturation: lowest of an object's colour. tint: highest saturation of the background. clutter:
    number of strokes drawn behind the objects.
    """

    radius: tuple[float, float]
    hue_spread: float
    saturation: float
    tint: float
    clutter: int


DIFFICULTIES = {
    "easy": Difficulty(radius=(0.14, 0.22), hue_spread=14, saturation=0.7, tint=0.0, clutter=0),
    "medium": Difficulty(radius=(0.10, 0.20), hue_spread=40, saturation=0.5, tint=0.3, clutter=6),
    "hard": Difficulty(radius=(0.06, 0.12), hue_spread=180, saturation=0.4, tint=0.6, clutter=20),
}
MOST_OBJECTS = 4


def polygon(radii: list[float], points: int) -> np.ndarray:
    """Return the corners (points, 2) of a shape whose distance from the centre cycles through `radii`."""
    angles = 2 * np.pi * np.arange(points) / points - np.pi / 2
    return np.resize(radii, points)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def heart() -> np.ndarray:
    """Return the corners (40, 2) of a heart within the unit circle."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 17


DISC = polygon([1], 40)
CROSS = np.stack(
    [(1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1, -1), (3, 1, 1, -1, -1, -3, -3, -1, -1, 1, 1, 3)], axis=1
)
# Each class: its outline, and the hole cut out of it, within the unit circle. Its place here gives its hue.
SHAPES: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "circle": (DISC, None),
    "triangle": (polygon([1], 3), None),
    "square": (polygon([1], 4), None),
    "star": (polygon([1, 0.4], 10), None),
    "cross": (CROSS / 10**0.5, None),
    "ring": (DISC, 0.55 * DISC),
    "crescent": (DISC, 0.85 * DISC + [0.5, 0]),
    "heart": (heart(), None),
}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    make_shapes(args.out_dir, args.num_train, args.num_test, args.size, args.difficulty, args.seed)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Make the data set `shapes`: scenes with several drawn objects, and their labels."
    )
    parser.add_argument(
        "--difficulty",
        choices=DIFFICULTIES,
        default="easy",
        help="how hard to tell apart [default: %(default)s]",
    )
    parser.add_argument(
        "--num_train", type=number(int, 1), default=3000, help="images [default: %(default)s]"
    )
    parser.add_argument("--num_test", type=number(int, 1), default=1000, help="images [default: %(default)s]")
    parser.add_argument(
        "--size", type=number(int, 16), default=64, help="side in pixels [default: %(default)s]"
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="same seed, same files [default: %(default)s]"
    )
    parser.add_argument(
        "--out_dir",
        type=given_path,
        default=Path("data/shapes"),
        help="folder of the images, label files and classes.json [default: %(default)s]",
    )
    return parser.parse_args(argv)


def make_shapes(out_dir: Path, num_train: int, num_test: int, size: int, difficulty: str, seed: int) -> None:
    """Write images/, classes.json, train.json and test.json to out_dir; they replace only their like.

    Raises UserError where out_dir cannot be written to or holds another data set.
    """
    check_folder(out_dir, "--out_dir")
    classes = out_dir / "classes.json"
    ours = classes.exists() and read_json(classes) == list(SHAPES)
    if not ours and out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"--out_dir {out_dir} holds something other than a data set of shapes: name another")
    write_json_list(classes, SHAPES)
    part = out_dir / "images.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        counts = {"train": num_train, "test": num_test}
        splits = draw_splits(part, out_dir, counts, size, DIFFICULTIES[difficulty], seed)
        for split in splits:  # labels never stand beside the images of another seed
            (out_dir / split).unlink(missing_ok=True)
        shutil.rmtree(out_dir / "images", ignore_errors=True)
        part.rename(out_dir / "images")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_labels(out_dir, list(SHAPES), splits)


def draw_splits(
    part: Path, out_dir: Path, counts: dict[str, int], size: int, difficulty: Difficulty, seed: int
) -> dict[str, list[dict]]:
    """Draw the images of each split into a folder; returns the entries of their label files, by file name."""
    splits = {}
    for split_id, (split, count) in enumerate(counts.items()):
        (part / split).mkdir(parents=True)
        entries = splits[f"{split}.json"] = []
        for index in tqdm(range(count), desc=f"shapes {split}", unit="img", disable=None):
            rng = np.random.default_rng((seed, split_id, index))
            image, objects = draw_scene(rng, size, difficulty)
            name = f"{split}/{index:05d}.jpg"
            image.save(part / name, quality=95, subsampling=0)
            present = {item["name"] for item in objects}
            target = [int(shape in present) for shape in SHAPES]
            img_path = (out_dir / "images" / name).as_posix()
            entries.append({"target": target, "img_path": img_path, "objects": objects})
    return splits


def draw_scene(rng: np.random.Generator, size: int, difficulty: Difficulty) -> tuple[Image.Image, list[dict]]:
    """Draw a scene of size x size pixels; returns it and its objects, {name, bbox: [x, y, w, h]}."""
    side = size * SUPERSAMPLING
    canvas = Image.new(
        "RGB", (side, side), colour(rng, rng.uniform(0, 360), (0, difficulty.tint), (0.2, 0.8))
    )
    for _ in range(difficulty.clutter):
        draw_stroke(canvas, rng, difficulty)

    objects, placed = [], []
    names = list(SHAPES)
    for _ in range(rng.integers(1, MOST_OBJECTS + 1)):
        place = find_place(rng, side, difficulty.radius, placed)
        if place is None:
            continue
        placed.append(place)
        label = int(rng.integers(len(names)))
        hue = 360 * label / len(names) + rng.uniform(-1, 1) * difficulty.hue_spread
        mask = draw_mask(side, names[label], *place, angle=rng.uniform(0, 2 * np.pi))
        canvas.paste(colour(rng, hue, (difficulty.saturation, 1), (0.55, 1)), mask=mask)
        left, top, right, bottom = (edge / SUPERSAMPLING for edge in mask.getbbox())
        objects.append({"name": names[label], "bbox": [left, top, right - left, bottom - top]})
    image = canvas.reduce(SUPERSAMPLING)
    noise = rng.normal(0, 4, (size, size, 1))  # a camera's grain, in grey levels
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)), objects


def find_place(
    rng: np.random.Generator, side: int, radius: tuple[float, float], placed: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Draw the centre and radius (x, y, r) of an object that hides no other's middle, None if crowded."""
    for _ in range(50):
        r = side * rng.uniform(*radius)
        x, y = rng.uniform(r, side - r, size=2)
        if all(np.hypot(x - px, y - py) > 0.75 * (r + pr) for px, py, pr in placed):
            return x, y, r
    return None


def draw_mask(side: int, name: str, x: float, y: float, r: float, angle: float) -> Image.Image:
    """Return the mask (side x side) of a shape of radius r centred at (x, y), turned by `angle` radians."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (side, side))
    for corners, fill in zip(SHAPES[name], (255, 0)):
        if corners is not None:
            ImageDraw.Draw(mask).polygon([tuple(p) for p in corners @ turn.T * r + (x, y)], fill=fill)
    return mask


def draw_stroke(canvas: Image.Image, rng: np.random.Generator, difficulty: Difficulty) -> None:
    """Draw a line of random place, width and colour: background that looks like parts of objects."""
    side = canvas.width
    points = [tuple(p) for p in rng.uniform(0, side, (2, 2))]
    width = int(side * rng.uniform(0.01, 0.05))
    fill = colour(rng, rng.uniform(0, 360), (0, difficulty.tint), (0.2, 0.9))
    ImageDraw.Draw(canvas).line(points, fill=fill, width=width)


def colour(
    rng: np.random.Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[int, int, int]:
    """Return an RGB colour (0-255) of a hue (degrees), saturation and value drawn from ranges (0-1)."""
    return tuple(
        round(255 * c)
        for c in colorsys.hsv_to_rgb(hue / 360 % 1, rng.uniform(*saturation), rng.uniform(*value))
    )


if __name__ == "__main__":
    run(main)
