"""Made-up inputs for the benchmarks: photographs, and the annotations of COCO at full size."""

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from utils.datasets import LabelledImages
from utils.label_files import Labels, class_names

PHOTO_SIZES = ((500, 375), (640, 480))  # of VOC and COCO, width x height
CLASSES, IMG_SIZE = 80, 448
COCO_IMAGES, COCO_BOXES = 82_783, 604_907  # of train2014


def random_targets(count: int) -> np.ndarray:
    """Return targets (count, C) of 0 and 1 as frequent as COCO's, every class with a positive."""
    targets = np.random.default_rng(0).random((count, CLASSES)) < 2.9 / CLASSES
    targets[np.arange(CLASSES) % count, np.arange(CLASSES)] = True
    return targets.astype(np.int8)


def our_images(photos: list[str], train: bool) -> LabelledImages:
    """Return photographs as main.py loads them."""
    paths = np.array([path.encode() for path in photos])
    return LabelledImages(Labels(paths, random_targets(len(photos)), None), IMG_SIZE, train)


def make_photos(folder: Path, count: int) -> list[str]:
    """Write JPEGs with the spectrum of photographs, falling as 1 / frequency; returns their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        width, height = PHOTO_SIZES[index % len(PHOTO_SIZES)]
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        frequency[0, 0] = 1
        phases = np.exp(2j * np.pi * rng.random((2, height, width)))
        grey, tint = (np.fft.ifft2(phase / frequency).real for phase in phases)
        # Channels of a photograph go together, and its grain does not.
        channels = [grey + weight * tint for weight in (0.3, 0, -0.3)]
        pixels = np.stack([(c - c.mean()) / c.std() for c in channels], axis=2)
        pixels = 120 + 55 * pixels + rng.normal(0, 4, pixels.shape)
        path = folder / f"{index:04d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths


def make_coco(folder: Path, images: int, boxes: int) -> dict[str, set[int]]:
    """Lay out COCO 2014 with made-up annotations with polygons and empty image files; val is one image.

    Returns the category ids of each training image, by file name.
    """
    rng = np.random.default_rng(0)
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names("coco"), start=1)]
    outlines = [json.dumps([rng.uniform(0, 480, 2 * n).round(2).tolist()]) for n in rng.integers(8, 40, 1000)]
    labels: dict[str, set[int]] = {}
    for split, image_count, box_count in (("train2014", images, boxes), ("val2014", 1, 1)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        names = [f"COCO_{split}_{i:012d}.jpg" for i in range(1, image_count + 1)]
        for name in names:
            (folder / "images" / split / name).touch()
        # Every image has an annotation, so that none is left out.
        owners = np.concatenate(
            [np.arange(image_count), rng.integers(image_count, size=box_count - image_count)]
        )
        kinds = rng.integers(1, len(categories) + 1, size=box_count)
        template = (
            '{{"id": {}, "image_id": {}, "category_id": {}, "segmentation": {}, "iscrowd": 0, "area": {}.5, '
            '"bbox": [{}.25, {}.5, {}.75, {}.25]}}'
        )
        entries = (
            template.format(i, owner + 1, kind, outline, i % 977, i % 311, i % 173, i % 97, i % 89)
            for i, (owner, kind, outline) in enumerate(zip(owners, kinds, itertools.cycle(outlines)), start=1)
        )
        listed = [
            {"id": i, "file_name": name, "height": 480, "width": 640} for i, name in enumerate(names, start=1)
        ]
        with open(folder / "annotations" / f"instances_{split}.json", "w") as file:
            file.write(
                f'{{"images": {json.dumps(listed)}, "categories": {json.dumps(categories)}, "annotations": ['
            )
            file.write(", ".join(entries))
            file.write("]}")
        if split == "train2014":
            for owner, kind in zip(owners.tolist(), kinds.tolist()):
                labels.setdefault(names[owner], set()).add(kind)
    return labels
