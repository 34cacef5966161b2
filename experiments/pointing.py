"""The pointing game: how often the highest place of a class's map lies in an object of the class.

python experiments/pointing.py --load_from checkpoint/RUN/best.pth [MORE.pth ...] [--dataset voc07]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
import xml.etree.ElementTree as ET

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy as np
import torch
from PIL import Image

from utils.checkpoint import load_model
from utils.data.datasets import dataset_spec, label_file
from utils.data.loaders import EvaluationLoader
from utils.data.samples import load_split, to_float
from utils.runtime.cli import Parser, UserError, given_path, reporting_errors, run_script
from utils.runtime.files import read_json

CPU = torch.device("cpu")
GRID = 256  # boxes are drawn on a grid of this side
# Sizes of objects: the share of the image that the boxes of the class cover.
SIZES = {"all": (0, 1), "small (< 5 %)": (0, 0.05), "medium": (0.05, 0.25), "large (> 25 %)": (0.25, 1)}
# Name of the class, and x, y, w and h as shares of the image's sides.
Box = tuple[str, float, float, float, float]


def main() -> None:
    parser = Parser("Print how often the map of a class points at an object of the class, by object size.")
    several = {"nargs": "+", "required": True, "metavar": "FILE"}
    parser.add_argument("--load_from", type=given_path, help="one or more checkpoints", **several)
    parser.add_argument("--dataset", default="shapes", help="shapes, voc07 or voc12; its test images")
    args = parser.parse_args()
    for path in args.load_from:
        hits, areas = pointing_game(path, args.dataset)
        print(f"{path}:")
        for name, share in by_size(hits, areas).items():
            print(
                f"  {name:15} {share['hits']:6.1%} of {share['maps']} maps, at random {share['random']:.1%}"
            )


def by_size(hits: np.ndarray, areas: np.ndarray) -> dict[str, dict]:
    """Return for each of SIZES the share of hits, the number of maps and the share that chance would hit."""
    result = {}
    for name, (low, high) in SIZES.items():
        chosen = (areas > low) & (areas <= high)
        if chosen.any():
            shares = {"hits": float(hits[chosen].mean()), "random": float(areas[chosen].mean())}
            result[name] = shares | {"maps": int(chosen.sum())}
    return result


@torch.inference_mode()
def pointing_game(path: Path, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each map points at an object of its class, and the share of the image these cover.

    There is a map for each class that a test image shows. Both arrays have shape (maps,).
    Raises UserError if the checkpoint or the data set does not fit.
    """
    spec, model = dataset_spec(dataset), load_model(path, dataset, device="cpu")
    entries = read_json(label_file(spec, "test"))
    loader = EvaluationLoader(load_split(spec, "test", model.options["img_size"]), 50, 0, CPU)
    hits, areas = [], []
    for images, _, indices in loader:
        features = model.network.features(to_float(images, CPU))
        maps = model.network.classifier.attention_maps(features).numpy()
        for index, maps_of_image in zip(indices.tolist(), maps):
            boxes = read_boxes(entries[index])
            for c, name in enumerate(model.classes):
                mask = box_mask([box for box in boxes if box[0] == name])
                if mask.any():
                    areas.append(mask.mean())
                    hits.append(mask[highest(maps_of_image[c])])
    return np.array(hits), np.array(areas)


def read_boxes(entry: dict) -> list[Box]:
    """Return the boxes of a test image of shapes or of VOC; difficult objects have none."""
    path = Path(entry["img_path"])
    if "objects" in entry:
        with Image.open(path) as image:
            width, height = image.size
        boxes = [(item["name"], *item["bbox"]) for item in entry["objects"]]
    else:
        annotation = path.parent.parent / "Annotations" / f"{path.stem}.xml"
        if not annotation.exists():
            raise UserError(f"{path} has no boxes, in its label file or in {annotation}: use shapes or VOC")
        with reporting_errors(f"{path} has no boxes: {annotation} is not a VOC annotation"):
            root = ET.parse(annotation).getroot()
            width, height = (float(root.findtext(f"size/{side}")) for side in ("width", "height"))
            boxes = []
            for item in root.findall("object"):
                left, top, right, bottom = (
                    float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if item.findtext("difficult") != "1":
                    boxes.append((item.findtext("name"), left, top, right - left, bottom - top))
    return [(name, x / width, y / height, w / width, h / height) for name, x, y, w, h in boxes]


def highest(values: np.ndarray) -> tuple[int, int]:
    """Return the cell (row, column) of the grid at the centre of the highest place of a map (h, w)."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int((row + 0.5) * GRID / values.shape[0]), int((column + 0.5) * GRID / values.shape[1])


def box_mask(boxes: list[Box]) -> np.ndarray:
    """Return the cells of the grid whose centre is in one of the boxes, bool (GRID, GRID)."""
    centres = (np.arange(GRID) + 0.5) / GRID
    mask = np.zeros((GRID, GRID), bool)
    for _, x, y, w, h in boxes:
        mask |= ((centres >= y) & (centres < y + h))[:, None] & ((centres >= x) & (centres < x + w))
    return mask


if __name__ == "__main__":
    run_script(main)
