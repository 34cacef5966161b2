"""Make the built-in data set shapes: images of several coloured shapes on a noisy background.

python utils/prepare_shapes.py [--difficulty easy|medium|hard] [--overwrite]
"""

import colorsys
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.data.label_files import write_labels
from utils.runtime.cli import Parser, UserError, given_path, number, run_script
from utils.runtime.files import atomic_write, check_folder, read_json, write_json_list

SUPERSAMPLING = 4  # scenes are drawn this many times larger and then averaged, for smooth edges
# radius: range, as a share of the image side. hue_spread: degrees to either side of the hue of the class.
# saturation: lowest of the objects. tint: highest saturation of the background. num_strokes: lines on it.
Difficulty = namedtuple("Difficulty", ["radius", "hue_spread", "saturation", "tint", "num_strokes"])
DIFFICULTIES = {
    "easy": Difficulty(radius=(0.14, 0.22), hue_spread=14, saturation=0.7, tint=0.0, num_strokes=0),
    "medium": Difficulty(radius=(0.10, 0.20), hue_spread=40, saturation=0.5, tint=0.3, num_strokes=6),
    "hard": Difficulty(radius=(0.06, 0.12), hue_spread=180, saturation=0.4, tint=0.6, num_strokes=20),
}


def polygon(radii: list[float], num_corners: int) -> np.ndarray:
    """Return the corners (num_corners, 2) of a shape; their distances from the centre repeat `radii`."""
    angles = 2 * np.pi * np.arange(num_corners) / num_corners - np.pi / 2
    return np.resize(radii, num_corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
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


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description="Make the data set shapes: images with several drawn objects, and labels.")
    parser.add_argument("--difficulty", choices=DIFFICULTIES, default="easy", help="how alike classes look")
    parser.add_argument("--num_train", type=number(int, 1), default=3000, help="number of training images")
    parser.add_argument("--num_test", type=number(int, 1), default=1000, help="number of test images")
    parser.add_argument("--size", type=number(int, 16), default=64, help="side of an image in pixels")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="same seed, same files")
    parser.add_argument("--out_dir", type=given_path, default="data/shapes", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a set made with other options")
    args = parser.parse_args(argv)
    made = ", ".join(f"{k} {v}" for k, v in vars(args).items() if k not in ("out_dir", "overwrite"))
    record = args.out_dir / "options.txt"
    if (args.out_dir / "train.json").exists() and not args.overwrite:
        before = record.read_text() if record.exists() else "unknown options"
        if before != made:
            raise UserError(f"--out_dir {args.out_dir} holds shapes with {before}: add --overwrite")
    make_shapes(args.out_dir, args.num_train, args.num_test, args.size, args.difficulty, args.seed)
    with atomic_write(record) as file:
        file.write(made)
    print(f"made shapes in {args.out_dir} with {made}")


def make_shapes(out_dir: Path, num_train: int, num_test: int, size: int, difficulty: str, seed: int) -> None:
    """Write images/, classes.json, train.json and test.json to out_dir; replace those of an earlier call."""
    check_folder(out_dir, "--out_dir")
    classes, images, part = (out_dir / name for name in ("classes.json", "images", "images.part"))
    if any(out_dir.glob("*")) and not (classes.exists() and read_json(classes) == list(SHAPES)):
        raise UserError(f"--out_dir {out_dir} holds something other than a data set of shapes: name another")
    write_json_list(classes, SHAPES)
    shutil.rmtree(part, ignore_errors=True)  # a killed call left it
    splits, level = {"train.json": [], "test.json": []}, DIFFICULTIES[difficulty]
    try:
        for stream, (split, count) in enumerate((("train", num_train), ("test", num_test))):
            (part / split).mkdir(parents=True)
            for index in tqdm(range(count), desc=f"shapes {split}", unit="img", disable=None):
                image, objects = draw_scene(np.random.default_rng((seed, stream, index)), size, level)
                name = f"{split}/{index:05d}.jpg"
                image.save(part / name, quality=95, subsampling=0)
                target = [int(any(item["name"] == shape for item in objects)) for shape in SHAPES]
                entry = {"target": target, "img_path": (images / name).as_posix(), "objects": objects}
                splits[f"{split}.json"].append(entry)
        for name in splits:  # never leave labels beside the images of another seed
            (out_dir / name).unlink(missing_ok=True)
        shutil.rmtree(images, ignore_errors=True)
        part.rename(images)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_labels(out_dir, list(SHAPES), splits)


def draw_scene(rng: np.random.Generator, size: int, difficulty: Difficulty) -> tuple[Image.Image, list[dict]]:
    """Draw a scene of size x size pixels; return it and its objects, {name, bbox: [x, y, w, h]}."""
    side, tint = size * SUPERSAMPLING, (0, difficulty.tint)
    canvas = Image.new("RGB", (side, side), draw_colour(rng, rng.uniform(0, 360), tint, (0.2, 0.8)))
    for _ in range(difficulty.num_strokes):  # they look like parts of objects
        ends, width = rng.uniform(0, side, 4).tolist(), int(side * rng.uniform(0.01, 0.05))
        fill = draw_colour(rng, rng.uniform(0, 360), tint, (0.2, 0.9))
        ImageDraw.Draw(canvas).line(ends, fill=fill, width=width)
    names, objects, places = list(SHAPES), [], []  # places: x, y and radius of each object, in pixels
    for _ in range(rng.integers(1, 5)):
        for _ in range(50):  # look for a place where no object hides the middle of another
            r = side * rng.uniform(*difficulty.radius)
            x, y = rng.uniform(r, side - r, size=2)
            if all(np.hypot(x - px, y - py) > 0.75 * (r + pr) for px, py, pr in places):
                break
        else:
            continue
        places.append((x, y, r))
        label = int(rng.integers(len(names)))
        hue = 360 * label / len(names) + rng.uniform(-1, 1) * difficulty.hue_spread
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        mask = Image.new("L", (side, side))  # where the object is
        for corners, fill in zip(SHAPES[names[label]], (255, 0)):  # the outline, the hole
            ImageDraw.Draw(mask).polygon((corners @ turn.T * r + (x, y)).ravel().tolist(), fill=fill)
        canvas.paste(draw_colour(rng, hue, (difficulty.saturation, 1), (0.55, 1)), mask=mask)
        left, top, right, bottom = (edge / SUPERSAMPLING for edge in mask.getbbox())
        objects.append({"name": names[label], "bbox": [left, top, right - left, bottom - top]})
    noise = rng.normal(0, 4, (size, size, 1))  # camera noise, in grey levels
    pixels = np.clip(np.asarray(canvas.reduce(SUPERSAMPLING)) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)), objects


def draw_colour(rng: np.random.Generator, hue: float, saturation: tuple, value: tuple) -> tuple[int, ...]:
    """Return an RGB colour (0-255) of a hue in degrees; its saturation and value are random in a range."""
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1, rng.uniform(*saturation), rng.uniform(*value))
    return tuple(round(255 * channel) for channel in rgb)


if __name__ == "__main__":
    run_script(main)
