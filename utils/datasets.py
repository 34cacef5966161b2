"""The data sets: what differs between them, their samples and their loaders."""

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from utils.label_files import FORM, class_names, read_labels
from utils.runtime import interrupt
from utils.runtime.cli import UserError
from utils.runtime.distributed import RANK, WORLD_SIZE
from utils.transforms import eval_transform, load_image, train_transform

IGNORED = -1  # a target that counts in no loss and no metric
ORDER, AUGMENTATION = 0, 1  # separate streams of random numbers under one seed


@dataclass(frozen=True)
class DatasetSpec:
    """What differs between data sets; the defaults are those of a data set of one's own.

    train, test: label files in data/<folder>/. prepare: the command that makes them.
    train_values, test_values: what the numbers in them stand for: 1 positive, 0 negative, or IGNORED.
    decay_step: epochs between tenfold drops of the learning rate.
    crop: whether training images are cropped at random; else they are only flipped.
    mean, std: pixels in [0, 1] become (pixel - mean) / std.
    model, pretrained, img_size, total_epoch: defaults of main.py's options.
    """

    folder: str
    train: str = "train.json"
    test: str = "test.json"
    prepare: str = ""
    train_values: dict[int, int] = field(default_factory=lambda: {1: 1, 0: 0, 99: IGNORED})
    test_values: dict[int, int] = field(default_factory=lambda: {1: 1, 0: 0, 99: IGNORED})
    decay_step: int = 4
    crop: bool = True
    mean: float = 0.0
    std: float = 1.0
    model: str = "resnet101"
    pretrained: str = "imagenet"
    img_size: int = 448
    total_epoch: int = 30


DATASETS = {
    "voc07": DatasetSpec(
        folder="voc07",
        train="trainval_voc07.json",
        test="test_voc07.json",
        prepare="python utils/prepare_voc.py --data_path Dataset/VOCdevkit",
        test_values={1: 1, -1: 0, 0: IGNORED},
    ),
    "coco": DatasetSpec(
        folder="coco",
        train="train_coco2014.json",
        test="val_coco2014.json",
        prepare="python utils/prepare_coco.py --data_path Dataset/COCO2014",
        decay_step=5,
    ),
    "coco2017": DatasetSpec(
        folder="coco",
        train="train_coco2017.json",
        test="val_coco2017.json",
        prepare="python utils/prepare_coco.py --data_path Dataset/COCO2017 --year 2017",
        decay_step=5,
    ),
    "voc12": DatasetSpec(
        folder="voc12",
        train="train_voc12.json",
        test="val_voc12.json",
        prepare="python utils/prepare_voc.py --data_path Dataset/VOCdevkit --year 2012",
        test_values={1: 1, -1: 0, 0: IGNORED},
    ),
    "wider": DatasetSpec(
        folder="wider",
        train="trainval_wider.json",
        test="test_wider.json",
        prepare="python utils/prepare_wider.py --data_path Dataset/WIDER",
        decay_step=5,
        crop=False,
        mean=0.5,
        std=0.5,
        model="vit_B16_224",
        img_size=224,
    ),
    "shapes": DatasetSpec(
        folder="shapes",
        prepare="python utils/prepare_shapes.py",
        model="resnet18",
        pretrained="none",
        img_size=64,
        total_epoch=4,
    ),
}


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of a data set, the defaults for a folder data/<name>/; UserError if there is neither."""
    if name in DATASETS:
        return DATASETS[name]
    if not name or name.startswith(".") or Path(name).name != name or not Path("data", name).is_dir():
        raise UserError(
            f"--dataset {name}: not one of {', '.join(DATASETS)}, and there is no folder data/{name}/ "
            "with train.json, test.json and classes.json"
        )
    return DatasetSpec(folder=name)


def label_file(spec: DatasetSpec, split: str) -> Path:
    """Return the path of the label file of a split, "train" or "test"."""
    return Path("data", spec.folder, getattr(spec, split))


class LabelledImages(Dataset):
    """Images and targets of one split; an item is asked for as (epoch, index, counted).

    boxes: (N, 4) of x, y, w, h, what to cut out of each image, or None for all of it.
    The augmentation is a function of (seed, epoch, index) alone, so that neither the number of workers nor an
    interruption changes a sample. Without a seed there is none: the test transform.
    """

    def __init__(
        self,
        paths: np.ndarray,
        targets: np.ndarray,
        img_size: int,
        seed: int | None = None,
        max_pixels: float = math.inf,
        boxes: np.ndarray | None = None,
        crop: bool = True,
    ):
        self.paths = paths
        self.targets = targets
        self.img_size = img_size
        self.seed = seed
        self.max_pixels = max_pixels
        self.boxes = boxes
        self.crop = crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[Tensor, Tensor, int]:
        """Return the image (3, S, S) uint8, its target (C,) int8, IGNORED unless counted, and its index."""
        epoch, index, counted = key
        image = load_image(os.fsdecode(self.paths[index]), self.max_pixels)
        if self.boxes is not None:
            image = cut_out(image, self.boxes[index].tolist(), os.fsdecode(self.paths[index]))
        if self.seed is None:
            image = eval_transform(image, self.img_size)
        else:
            rng = np.random.default_rng((AUGMENTATION, self.seed, epoch, index))
            image = train_transform(image, self.img_size, rng, self.crop)
        target = torch.from_numpy(self.targets[index])
        return image, target if counted else torch.full_like(target, IGNORED), index

    def positives(self) -> list[int]:
        """Return the number of images of each class."""
        return (self.targets == 1).sum(axis=0).tolist()


def load_split(
    spec: DatasetSpec, split: str, img_size: int, seed: int | None = None, max_pixels: float = math.inf
) -> LabelledImages:
    """Load a split, "train" or "test", augmented where a seed is given.

    Raises UserError if it is not prepared, or any of its images is missing: better now than hours into an
    epoch.
    """
    path = label_file(spec, split)
    if not path.exists():
        way_out = f"make it with: {spec.prepare}" if spec.prepare else f"it is a JSON list of {FORM}"
        raise UserError(f"{path} is missing; {way_out}")
    paths, targets, boxes = read_labels(path, len(class_names(spec.folder)), getattr(spec, f"{split}_values"))
    missing = [image for image in paths if not os.path.isfile(image)]
    if missing:
        way_out = f", or prepare it again: {spec.prepare}" if spec.prepare else ""
        raise UserError(
            f"{os.fsdecode(missing[0])}, named in {path}, is missing ({len(missing)} of {len(paths)} are): "
            f"run the command in the folder that relative paths count from{way_out}"
        )
    return LabelledImages(paths, targets, img_size, seed, max_pixels, boxes, spec.crop)


def cut_out(image: Tensor, box: list[int], path: str) -> Tensor:
    """Return the part of an image (3, H, W) in a box of x, y, w, h; UserError where there is none."""
    x, y, w, h = box
    part = image[:, y : y + h, x : x + w]
    if not part.numel():
        raise UserError(f"{path} is {image.shape[2]} x {image.shape[1]}: its box {box} lies outside")
    return part


class EpochBatches(Sampler):
    """The batches of an epoch that this process takes, each a list of (epoch, index, counted).

    With a seed the order is shuffled by (seed, epoch) alone and every process takes its share of each batch,
    or, where the last batch has none for it, an image that counts in no loss: all take as many steps.
    Without a seed the batches are in order and dealt out whole: the scores of an image are those of one
    process.
    Set `epoch`, counted from 0, before iterating, and `start` to leave out the first batches.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int | None = None,
        rank: int = RANK,
        world_size: int = WORLD_SIZE,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.mine = slice(rank, None, world_size)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        batches = range(math.ceil(self.num_samples / self.batch_size))
        return len(batches if self.seed is not None else batches[self.mine])

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        order = np.arange(self.num_samples)
        if self.seed is not None:
            np.random.default_rng((ORDER, self.seed, self.epoch)).shuffle(order)
        batches = [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        if self.seed is None:
            yield from ([(self.epoch, i, True) for i in batch] for batch in batches[self.mine])
        else:
            for batch in batches[self.start :]:
                share = batch[self.mine]
                yield [(self.epoch, i, True) for i in share] or [(self.epoch, batch[0], False)]


def make_loader(
    dataset: LabelledImages, batch_size: int, num_workers: int, device: torch.device
) -> DataLoader:
    """Batch a data set, shuffled where it has a seed; set `loader.batch_sampler` to the epoch before each."""
    batches = EpochBatches(len(dataset), batch_size, dataset.seed)
    num_workers = min(num_workers, len(batches))
    with warnings.catch_warnings(action="ignore"):  # of more workers than cores: that is the user's choice
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            persistent_workers=num_workers > 0,
            worker_init_fn=interrupt.leave_to_parent,
        )


def collate(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples to images (B, 3, S, S) uint8 in channels_last memory, targets (B, C) and indices (B,)."""
    # Decoded pixels lie as (H, W, 3), and convolutions want them so: neither side has to transpose them.
    images, targets, indices = default_collate([(i.permute(1, 2, 0), t, index) for i, t, index in samples])
    return images.permute(0, 3, 1, 2), targets, indices


def to_float(images: Tensor, device: torch.device, spec: DatasetSpec) -> Tensor:
    """Move uint8 images (B, 3, S, S) to the device, and there to float32: (pixel / 255 - mean) / std."""
    return images.to(device, non_blocking=True).float().div_(255).sub_(spec.mean).div_(spec.std)
