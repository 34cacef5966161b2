"""The pointing game: how often the highest place of a class's map lies in an object of the class.

python experiments/pointing.py --load_from checkpoint/RUN/best.pth [MORE.pth ...] [--dataset voc07]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import utils.runtime.passive_waiting  # before torch

import numpy as np
import torch
from PIL import Image

import utils.runtime.torchvision_alone  # noqa: F401  before torchvision
from utils.checkpoint import load_model
from utils.data.datasets import dataset_spec, label_file
from utils.data.loaders import EvaluationLoader
from utils.data.samples import load_split, to_float
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import read_json
from utils.runtime.script import run_script

CPU = torch.device("cpu")
GRID = 256  # boxes are drawn on a grid of this side
# Sizes of objects: the share of the image that the boxes of the class cover, above the first, to the second.
OBJECT_SIZES = {
    "all": (0, 1),
    "small (< 5 %)": (0, 0.05),
    "medium": (0.05, 0.25),
    "large (> 25 %)": (0.25, 1),
}


class Box(NamedTuple):
    """An object: the name of its class, and its box in shares of the image's sides."""

    name: str
    x: float
    y: float
    width: float
    height: float


def main() -> None:
    args = parse_args()
    for path in args.load_from:
        hits, areas = pointing_game(path, args.dataset)
        print(f"{path}:")
        for name, share in by_size(hits, areas).items():
            found = f"{share['hits']:6.1%} of {share['maps']} maps"
            print(f"  {name:15} {found}, at random {share['random']:.1%}")


def parse_args() -> argparse.Namespace:
    parser = Parser("Print how often the map of a class points at an object of the class, by object size.")
    parser.add_argument(
        "--load_from",
        type=given_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="one or more checkpoints",
    )
    parser.add_argument("--dataset", default="shapes", help="shapes, voc07 or voc12; its test images")
    return parser.parse_args()


def by_size(hits: np.ndarray, areas: np.ndarray) -> dict[str, dict[str, float]]:
    """Return for each of OBJECT_SIZES the share of hits, the number of maps and the hits of chance."""
    result = {}
    for name, (low, high) in OBJECT_SIZES.items():
        chosen = (areas > low) & (areas <= high)
        if chosen.any():
            result[name] = {
                "hits": float(hits[chosen].mean()),
                "random": float(areas[chosen].mean()),
                "maps": int(chosen.sum()),
            }
    return result


@torch.inference_mode()
def pointing_game(path: Path, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each map points at an object of its class, and the share of the image these cover.

    There is a map for each class that a test image shows. Both arrays have shape (maps,).
    Raises UserError if the checkpoint or the data set does not fit.
    """
    spec = dataset_spec(dataset)
    model = load_model(path, dataset, device="cpu")
    entries = read_json(label_file(spec, "test"))
    loader = EvaluationLoader(load_split(spec, "test", model.options["img_size"]), 50, 0, CPU)
    hits = []
    areas = []
    for images, _, indices in loader:
        features = model.network.features(to_float(images, CPU))
        maps = model.network.classifier.attention_maps(features).numpy()
        for index, class_maps in zip(indices.tolist(), maps):
            boxes = read_boxes(entries[index])
            for name, class_map in zip(model.classes, class_maps):
                mask = box_mask([box for box in boxes if box.name == name])
                if mask.any():
                    areas.append(mask.mean())
                    hits.append(mask[highest(class_map)])
    return np.array(hits), np.array(areas)


def read_boxes(entry: dict[str, Any]) -> list[Box]:
    """Return the boxes of a test image of shapes or of VOC; difficult objects have none.

    Raises UserError if the image has none of the two kinds of annotation, or a malformed one.
    """
    path = Path(entry["img_path"])
    if "objects" in entry:
        with Image.open(path) as image:
            size = image.size
        return [relative_box(item["name"], item["bbox"], size) for item in entry["objects"]]
    annotation = path.parent.parent / "Annotations" / f"{path.stem}.xml"
    if not annotation.exists():
        raise UserError(f"{path} has no boxes, in its label file or in {annotation}: use shapes or VOC")
    with reporting_errors(f"{path} has no boxes: {annotation} is not a VOC annotation"):
        return read_voc_boxes(ET.parse(annotation).getroot())


def read_voc_boxes(root: ET.Element) -> list[Box]:
    """Return the boxes of a VOC annotation, but of difficult objects; ValueError if one is malformed.

    VOC counts pixels from 1, and xmax and ymax are those of the last pixels in the box.
    """
    size = (read_number(root, "size/width"), read_number(root, "size/height"))
    boxes = []
    for item in root.findall("object"):
        left = read_number(item, "bndbox/xmin") - 1
        top = read_number(item, "bndbox/ymin") - 1
        width = read_number(item, "bndbox/xmax") - left
        height = read_number(item, "bndbox/ymax") - top
        if item.findtext("difficult") != "1":
            boxes.append(relative_box(item.findtext("name", ""), (left, top, width, height), size))
    return boxes


def read_number(element: ET.Element, place: str) -> float:
    """Return the number at a place below an element; ValueError if there is none."""
    return float(element.findtext(place, f"no {place}"))


def relative_box(name: str, box: Sequence[float], size: tuple[float, float]) -> Box:
    """Return a box (x, y, width, height) in pixels in shares of the image's size (width, height)."""
    x, y, width, height = box
    image_width, image_height = size
    return Box(name, x / image_width, y / image_height, width / image_width, height / image_height)


def highest(values: np.ndarray) -> tuple[int, int]:
    """Return the cell (row, column) of the grid at the centre of the highest place of a map (h, w)."""
    height, width = values.shape
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int((row + 0.5) * GRID / height), int((column + 0.5) * GRID / width)


def box_mask(boxes: list[Box]) -> np.ndarray:
    """Return the cells of the grid whose centre is in one of the boxes, bool (GRID, GRID)."""
    centres = (np.arange(GRID) + 0.5) / GRID
    mask = np.zeros((GRID, GRID), bool)
    for box in boxes:
        rows = (centres >= box.y) & (centres < box.y + box.height)
        columns = (centres >= box.x) & (centres < box.x + box.width)
        mask |= rows[:, None] & columns
    return mask


if __name__ == "__main__":
    run_script(main)
