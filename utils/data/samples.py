"""The samples of a data set: its images and targets, one by one, and joined into batches."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from utils.data.classes import class_names
from utils.data.datasets import VALUES, DatasetSpec, label_file
from utils.data.decoding import load_image
from utils.data.label_files import FORM, INDEX_FORM, read_labels
from utils.data.labels import IGNORED, Labels, Paths
from utils.data.order import AUGMENTATION, SampleKey
from utils.data.transforms import cut_out, eval_transform, train_transform
from utils.runtime.errors import UserError, as_user_errors
from utils.runtime.limits import MAX_PIXELS
from utils.runtime.listing import KnownFiles
from utils.runtime.paths import existing_spelling
from utils.runtime.progress import delayed_bar

# One bad image is often not the only one.
ALL_BAD_IMAGES = (
    "the script that made the label files lists all such images (--verify), or leaves them out (--skip_bad)"
)


class Sample(NamedTuple):
    """An image (3, S, S) uint8, its target (C,) int8 of 1, 0 or IGNORED, and its row in the label file."""

    image: Tensor
    target: Tensor
    row: int


class Batch(NamedTuple):
    """Images (B, 3, S, S) uint8 in channels_last memory, their targets (B, C) int8 and rows (B,)."""

    images: Tensor
    targets: Tensor
    rows: Tensor


@dataclass(eq=False)
class LabelledImages(Dataset[Sample]):
    """Images and targets of one split, indexed by SampleKey.

    train: whether to augment each sample. The result depends only on (seed, epoch, row), so that neither the
    number of workers nor an interruption changes it. crop, exif: see DatasetSpec.
    """

    labels: Labels
    img_size: int
    train: bool = False
    seed: int = 0
    crop: bool = True
    exif: bool = False
    max_pixels: float = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels.paths)

    @as_user_errors()
    def __getitem__(self, key: SampleKey) -> Sample:
        """Return a sample; if it does not count, its whole target is IGNORED."""
        epoch, row, counted = key
        image = self.pixels(row)
        if self.train:
            rng = np.random.default_rng((AUGMENTATION, self.seed, epoch, row))
            image = train_transform(image, self.img_size, rng, self.crop)
        else:
            image = eval_transform(image, self.img_size)
        target = torch.from_numpy(self.labels.targets.row(row))
        if not counted:
            target = torch.full_like(target, IGNORED)
        return Sample(image, target, row)

    def path(self, row: int) -> str:
        """Return the path of a row's image."""
        return self.labels.paths[row]

    def pixels(self, row: int) -> Tensor:
        """Return the image of a row, or the part in its box, as uint8 (3, H, W)."""
        try:
            image = load_image(self.path(row), self.max_pixels, self.exif)
        except UserError as error:
            raise UserError(f"{error}; {ALL_BAD_IMAGES}") from None
        if self.labels.boxes is None:
            return image
        return cut_out(image, *self.labels.boxes[row].tolist())


def load_split(
    spec: DatasetSpec,
    split: str,
    img_size: int,
    train: bool = False,
    seed: int = 0,
    max_pixels: float = MAX_PIXELS,
) -> LabelledImages:
    """Load "train", "val" or "test"; train, seed and max_pixels as in LabelledImages.

    Raises UserError if the label file is missing or malformed, or an image is missing.
    """
    path = label_file(spec, split)
    if not path.exists():
        way_out = f"it is a JSON list of {FORM} or {INDEX_FORM}"
        if spec.prepare and split != "val":
            way_out = f"make it with: python utils/{spec.prepare}"
        raise UserError(f"{path} is missing; {way_out}")
    values = spec.test_values if split == "test" else VALUES
    labels = read_labels(path, len(class_names(spec.folder)), values, max_pixels)
    check_images_exist(labels.paths, path)
    labels = labels._replace(unknown_is_negative=spec.unknown_is_negative)
    return LabelledImages(
        labels, img_size, train, seed, crop=spec.crop, exif=spec.exif, max_pixels=max_pixels
    )


def check_images_exist(images: Paths, path: Path) -> None:
    """Raise UserError if an image that the label file at `path` names is missing."""
    known_files = KnownFiles()
    missing = []
    for row in delayed_bar(range(len(images)), path.stem):
        if images.encoded(row) not in known_files and not os.path.isfile(existing_spelling(images[row])):
            missing.append(images[row])
    if missing:
        which = f"{missing[0]}, named in {path}, is missing ({len(missing)} of {len(images)} are)"
        raise UserError(f"{which}: run the command where the label files were made, or make them again")


@as_user_errors()
def collate(samples: list[Sample]) -> Batch:
    """Join samples into a batch."""
    # Decoders give (H, W, 3) and convolutions are fastest with it, so the memory keeps that order.
    in_memory_order = [Sample(image.permute(1, 2, 0), target, row) for image, target, row in samples]
    images, targets, rows = default_collate(in_memory_order)
    return Batch(images.permute(0, 3, 1, 2), targets, rows)


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """Move uint8 images (B, 3, S, S) to the device, and convert them there to float32 in [0, 1]."""
    return images.to(device, non_blocking=True).float().div_(255)
