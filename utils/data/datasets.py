"""The data sets: what differs between them, their samples and their loaders."""

import math
import os
import warnings
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from utils import prepare_shapes
from utils.data.label_files import FORM, IGNORED, UNKNOWN, Labels, class_names, read_labels
from utils.data.transforms import cut_out, eval_transform, load_image, report_slow_decoder, train_transform
from utils.runtime import distributed, interrupt
from utils.runtime.cli import UserError
from utils.runtime.distributed import RANK, WORLD_SIZE

ORDER, AUGMENTATION = 0, 1  # separate streams of random numbers under one seed
# What the numbers in a label file mean. VOC's 0 in the test file: only difficult objects of the class.
VALUES = {1: 1, 0: 0, UNKNOWN: IGNORED}
VOC_TEST = {1: 1, -1: 0, 0: IGNORED}


@dataclass(frozen=True)
class DatasetSpec:
    """What differs between data sets.

    train, val, test: label files data/<folder>/<name>.json. If there is a val.json, best.pth is chosen on it,
    else on the test images. prepare: the command in utils/ that makes the others.
    test_values: what the numbers in the test file mean: 1 positive, 0 negative, or IGNORED.
    unknown_is_negative: whether metrics other than mAP count an ignored label as negative, see `evaluate`.
    crop: whether training images are cropped at random; else they are only flipped.
    exif: whether the EXIF orientation is applied; the published figures are without it.
    normalize: how pixels are normalised by default, a key of NORMALIZATION in pipeline/network.py.
    model, pretrained, img_size, total_epoch, decay_step: defaults of main.py's options; decay_step None is
    two thirds of the run.
    """

    folder: str
    train: str = "train"
    test: str = "test"
    prepare: str = ""
    test_values: dict[int, int] = field(default_factory=lambda: VALUES)
    val: str = "val"
    unknown_is_negative: bool = False
    crop: bool = True
    exif: bool = False
    normalize: str = "none"
    model: str = "resnet101"
    pretrained: str = "imagenet"
    img_size: int = 448
    total_epoch: int = 30
    decay_step: int | None = 4


# fmt: off
DATASETS = {
    "voc07": DatasetSpec("voc07", "trainval_voc07", "test_voc07", "prepare_voc.py", VOC_TEST),
    "voc12": DatasetSpec("voc12", "train_voc12", "val_voc12", "prepare_voc.py --year 2012", VOC_TEST),
    "coco": DatasetSpec("coco", "train_coco2014", "val_coco2014", "prepare_coco.py", decay_step=5),
    "coco2017": DatasetSpec("coco", "train_coco2017", "val_coco2017", "prepare_coco.py --year 2017",
        decay_step=5),
    "wider": DatasetSpec("wider", "trainval_wider", "test_wider", "prepare_wider.py", crop=False,
        normalize="0.5", unknown_is_negative=True, model="vit_B16_224", img_size=224, decay_step=5),
    "shapes": DatasetSpec("shapes", prepare="prepare_shapes.py", model="resnet18", pretrained="none",
        img_size=64, total_epoch=4),
}
# fmt: on
# A data set that a user adds. A small one has few steps per epoch. With a drop every 4 epochs, 2 of them
# warm-up, the rate would soon be too low to learn. One drop after two thirds of the run suits any length.
OWN = DatasetSpec("", exif=True, decay_step=None)


def dataset_spec(name: str) -> DatasetSpec:
    """Return the DatasetSpec of a name or of a folder data/<name>/; UserError if there is neither."""
    if name in DATASETS:
        return DATASETS[name]
    if not name or name.startswith(".") or Path(name).name != name or not Path("data", name).is_dir():
        raise UserError(f"--dataset {name}: not one of {', '.join(DATASETS)}, nor a folder data/{name}/")
    return replace(OWN, folder=name)


def label_file(spec: DatasetSpec, split: str) -> Path:
    """Return the path of the label file of a split, "train", "val" or "test"."""
    return Path("data", spec.folder, f"{getattr(spec, split)}.json")


@dataclass(eq=False)
class LabelledImages(Dataset):
    """Images and targets of one split, indexed by the keys (epoch, index, counted) of EpochBatches.

    train: augment each sample; the result depends only on (seed, epoch, index), so that neither the number of
    workers nor an interruption changes it; else use the test transform. crop, exif: see DatasetSpec.
    """

    labels: Labels
    img_size: int
    train: bool = False
    seed: int = 0
    crop: bool = True
    exif: bool = False
    max_pixels: float = math.inf

    def __len__(self) -> int:
        return len(self.labels.paths)

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[Tensor, Tensor, int]:
        """Return the image (3, S, S) uint8, its target (C,) int8, IGNORED unless counted, and the index."""
        epoch, index, counted = key
        image = load_image(os.fsdecode(self.labels.paths[index]), self.max_pixels, self.exif)
        if self.labels.boxes is not None:
            image = cut_out(image, *self.labels.boxes[index].tolist())
        if self.train:
            rng = np.random.default_rng((AUGMENTATION, self.seed, epoch, index))
            image = train_transform(image, self.img_size, rng, self.crop)
        else:
            image = eval_transform(image, self.img_size)
        target = torch.from_numpy(self.labels.targets[index])
        return image, target if counted else torch.full_like(target, IGNORED), index


def load_split(spec: DatasetSpec, split: str, img_size: int, **options) -> LabelledImages:
    """Load "train", "val" or "test"; UserError if an image is missing. options: of LabelledImages."""
    path = label_file(spec, split)
    has_command = spec.prepare and split != "val"
    way_out = f"make it with: python utils/{spec.prepare}" if has_command else f"it is a JSON list of {FORM}"
    if not path.exists():
        raise UserError(f"{path} is missing; {way_out}")
    values, num_classes = spec.test_values if split == "test" else VALUES, len(class_names(spec.folder))
    labels = read_labels(path, num_classes, values, options.get("max_pixels", math.inf))
    if missing := [os.fsdecode(image) for image in labels.paths if not os.path.isfile(image)]:
        which = f"{missing[0]}, named in {path}, is missing ({len(missing)} of {len(labels.paths)} are)"
        raise UserError(f"{which}: run the command where the label files were made, or make them again")
    labels = labels._replace(unknown_is_negative=spec.unknown_is_negative)
    return LabelledImages(labels, img_size, crop=spec.crop, exif=spec.exif, **options)


class EpochBatches(Sampler):
    """The batches of an epoch that this process takes; each is a list of keys (epoch, index, counted).

    Training: the order depends on (seed, epoch) alone, and each process takes its share of every batch. If a
    share is empty, the process gets an image with `counted` False, whose labels are ignored, so that all take
    the same number of steps. Evaluation: batches in order; the processes take whole batches in turns.
    Set `epoch` (from 0) before iterating, and `start` to skip the first batches.
    """

    def __init__(self, dataset: Dataset, batch_size: int, rank: int = RANK, world_size: int = WORLD_SIZE):
        self.dataset, self.batch_size = dataset, batch_size
        self.mine = slice(rank, None, world_size)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        batches = range(math.ceil(len(self.dataset) / self.batch_size))
        return len(batches if self.dataset.train else batches[self.mine])

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        order = np.arange(len(self.dataset))
        if self.dataset.train:
            np.random.default_rng((ORDER, self.dataset.seed, self.epoch)).shuffle(order)
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        for batch in batches[self.start :] if self.dataset.train else batches[self.mine]:
            share = batch[self.mine] if self.dataset.train else batch
            yield [(self.epoch, i, True) for i in share.tolist()] or [(self.epoch, int(batch[0]), False)]


def make_loader(dataset: Dataset, batch_size: int, num_workers: int, device: torch.device) -> DataLoader:
    """Batch a data set, shuffled if it is for training; `loader.batch_sampler` is an EpochBatches."""
    options = {"collate_fn": collate, "pin_memory": device.type == "cuda"}
    # A worker that starts after the first step holds a copy of the memory of training until it ends.
    options["persistent_workers"] = dataset.train and num_workers > 0
    return load_batches(dataset, EpochBatches(dataset, batch_size), num_workers, **options)


def load_batches(dataset: Dataset, batches: Sampler, num_workers: int, **options) -> DataLoader:
    """Return a loader of a data set's batches, with no more workers than batches; options: of DataLoader."""
    report_slow_decoder()
    num_workers = min(num_workers, len(batches))
    options |= {"num_workers": num_workers, "worker_init_fn": interrupt.ignore_signals}
    with warnings.catch_warnings(action="ignore"):  # the user may choose more workers than there are cores
        return DataLoader(dataset, batch_sampler=batches, **options)


def make_loaders(args: Namespace, spec: DatasetSpec, device: torch.device) -> tuple[DataLoader, ...]:
    """Return main.py's loaders of training, validation (the test images without val.json) and test images."""
    if args.dataset == "shapes":
        distributed.first_process_first(make_missing_shapes)
    given = {"img_size": args.img_size, "seed": args.seed, "max_pixels": args.max_pixels}
    splits = ["train", "val", "test"] if label_file(spec, "val").exists() else ["train", "test"]
    sets = [load_split(spec, split, train=split == "train", **given) for split in splits]
    # In evaluation each process takes whole batches: 16 images fit a GPU whatever the training batch is.
    sizes = [args.batch_size if images.train else min(args.batch_size, 16) for images in sets]
    loaders = [make_loader(images, size, args.num_workers, device) for images, size in zip(sets, sizes)]
    return loaders[0], loaders[1], loaders[-1]


def make_missing_shapes() -> None:
    """Make the data set shapes unless it exists."""
    if not label_file(DATASETS["shapes"], "test").exists():
        print("The data set shapes is missing: making it with utils/prepare_shapes.py")
        prepare_shapes.main([])


def collate(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples to images (B, 3, S, S) uint8 in channels_last memory, targets (B, C) and indices (B,)."""
    # Decoders give (H, W, 3) and convolutions are fastest with it, so the memory keeps that order.
    images, targets, indices = default_collate([(i.permute(1, 2, 0), t, index) for i, t, index in samples])
    return images.permute(0, 3, 1, 2), targets, indices


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """Move uint8 images (B, 3, S, S) to the device, and there to float32 in [0, 1]."""
    return images.to(device, non_blocking=True).float().div_(255)
