"""The pointing game on shapes: how often the highest place of a class's map lies in an object of the class.

python experiments/pointing.py --load_from checkpoint/RUN/best.pth [MORE.pth ...]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.checkpoint import load_model
from utils.datasets import dataset_spec, label_file, load_split, make_loader, to_float
from utils.label_files import class_names
from utils.runtime.cli import Parser, UserError, given_path, run_script
from utils.runtime.files import read_json

CPU = torch.device("cpu")


def main() -> None:
    parser = Parser("Print how often the map of a class points at an object of the class, on data/shapes/.")
    load_help = "one or more checkpoints"
    parser.add_argument(
        "--load_from", type=given_path, nargs="+", required=True, metavar="FILE", help=load_help
    )
    for path in parser.parse_args().load_from:
        num_hits, num_maps, chance = pointing_game(path)
        share = f"{100 * num_hits / num_maps:.1f} % (a random point: {100 * chance:.1f} %)"
        print(f"{path}: {num_hits} of {num_maps} maps point at an object of their class, {share}", flush=True)


@torch.inference_mode()
def pointing_game(path: Path) -> tuple[int, int, float]:
    """Return how many maps point at an object of their class, how many there are, and the share at random.

    There is a map for each class that an image shows. Raises UserError if the checkpoint does not fit.
    """
    spec, model = dataset_spec("shapes"), load_model(path)
    if model.classes != class_names("shapes"):
        raise UserError(f"{path} was trained on other classes than those of shapes: name another file")
    entries = read_json(label_file(spec, "test"))
    if "objects" not in entries[0]:
        raise UserError(f"{label_file(spec, 'test')} holds no boxes: make it with utils/prepare_shapes.py")
    loader = make_loader(load_split(spec, "test", model.options["img_size"]), 50, 0, CPU)
    with Image.open(entries[0]["img_path"]) as image:
        side = image.width
    num_hits, areas = 0, []
    for images, _, indices in loader:
        maps = model.classifier.attention_maps(model.features(to_float(images, CPU))).numpy()
        for index, maps_of_image in zip(indices.tolist(), maps):
            for c, name in enumerate(model.classes):
                boxes = [item["bbox"] for item in entries[index]["objects"] if item["name"] == name]
                if boxes:
                    inside = box_mask(boxes, side)
                    areas.append(inside.mean())
                    num_hits += bool(inside[highest(maps_of_image[c], side)])
    return num_hits, len(areas), float(np.mean(areas))


def highest(values: np.ndarray, side: int) -> tuple[int, int]:
    """Return the pixel (row, column) of a square image at the centre of the highest place of a map."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int((row + 0.5) * side / values.shape[0]), int((column + 0.5) * side / values.shape[1])


def box_mask(boxes: list[list[float]], side: int) -> np.ndarray:
    """Return a mask (side, side) of the pixels whose centre is in one of the boxes [x, y, w, h]."""
    centres = np.arange(side) + 0.5
    mask = np.zeros((side, side), bool)
    for x, y, w, h in boxes:
        mask |= ((centres >= y) & (centres < y + h))[:, None] & ((centres >= x) & (centres < x + w))
    return mask


if __name__ == "__main__":
    run_script(main)
