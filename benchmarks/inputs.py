"""Synthetic inputs for the benchmarks: photographs, targets, and annotations like COCO's."""

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.classes import class_names
from utils.data.labels import Labels, Paths, Targets
from utils.data.samples import LabelledImages

PHOTO_SIZES = ((500, 375), (640, 480))  # of VOC and COCO, width x height
NUM_CLASSES = 80
ANNOTATION = (
    '{{"id": {}, "image_id": {}, "category_id": {}, "segmentation": {}, "iscrowd": 0, "area": {}.5, '
    '"bbox": [{}.25, {}.5, {}.75, {}.25]}}'
)


def random_targets(num_images: int) -> np.ndarray:
    """Return targets (num_images, C) of 0 and 1, with as many positives as COCO, and some in each class."""
    targets = np.random.default_rng(0).random((num_images, NUM_CLASSES)) < 2.9 / NUM_CLASSES
    targets[np.arange(NUM_CLASSES) % num_images, np.arange(NUM_CLASSES)] = True
    return targets.astype(np.int8)


def our_images(photos: list[str], img_size: int, train: bool) -> LabelledImages:
    """Return photographs as main.py loads them."""
    labels = Labels(Paths.of(photos), Targets.of(random_targets(len(photos))))
    return LabelledImages(labels, img_size, train)


def make_photos(folder: Path, num_photos: int) -> list[str]:
    """Write JPEGs whose spectrum falls as 1 / frequency, like that of photographs; return their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(num_photos):
        width, height = PHOTO_SIZES[index % len(PHOTO_SIZES)]
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        frequency[0, 0] = 1
        phases = np.exp(2j * np.pi * rng.random((2, height, width)))
        grey, tint = (np.fft.ifft2(phase / frequency).real for phase in phases)
        # The channels of a photograph are similar, but its noise differs between channels.
        channels = [grey + weight * tint for weight in (0.3, 0, -0.3)]
        pixels = np.stack([(c - c.mean()) / c.std() for c in channels], axis=2)
        pixels = 120 + 55 * pixels + rng.normal(0, 4, pixels.shape)
        path = folder / f"{index:04d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths


def make_coco(folder: Path, num_images: int, num_boxes: int) -> dict[str, set[int]]:
    """Write random annotations like those of COCO 2014, with polygons, and empty images; val has one image.

    Returns the category ids of each training image, by file name.
    """
    rng = np.random.default_rng(0)
    write_split(folder, "val2014", 1, 1, rng)
    return write_split(folder, "train2014", num_images, num_boxes, rng)


def write_split(
    folder: Path, split: str, num_images: int, num_boxes: int, rng: np.random.Generator
) -> dict[str, set[int]]:
    """Write one split of COCO; return the category ids of each image, by file name."""
    (folder / "images" / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    names = [f"COCO_{split}_{i:012d}.jpg" for i in range(1, num_images + 1)]
    for name in names:
        (folder / "images" / split / name).touch()
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names("coco"), start=1)]
    images = [{"id": i, "file_name": name, "height": 480, "width": 640} for i, name in enumerate(names, 1)]
    outlines = [json.dumps([rng.uniform(0, 480, 2 * n).round(2).tolist()]) for n in rng.integers(8, 40, 1000)]
    # Every image has at least one annotation, because prepare_coco leaves out images without any.
    owners = [*range(num_images), *rng.integers(num_images, size=num_boxes - num_images).tolist()]
    chosen = rng.integers(1, len(categories) + 1, size=num_boxes).tolist()
    annotations = (
        ANNOTATION.format(i, owner + 1, category, outline, i % 977, i % 311, i % 173, i % 97, i % 89)
        for i, (owner, category, outline) in enumerate(zip(owners, chosen, itertools.cycle(outlines)), 1)
    )
    with open(folder / "annotations" / f"instances_{split}.json", "w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, ')
        file.write(f'"annotations": [{", ".join(annotations)}]}}')
    labels: dict[str, set[int]] = {name: set() for name in names}
    for owner, category in zip(owners, chosen):
        labels[names[owner]].add(category)
    return labels
