"""The stages training and validation: a ResNet by the textbook and by main.py's own functions."""

import itertools
import math
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.resnet import Bottleneck

import main
from benchmarks import textbook
from benchmarks.inputs import NUM_CLASSES, our_images, random_targets
from benchmarks.timing import Row, Settings, in_child, synchronize, without_tf32
from pipeline.resnet_csra import ResNet_CSRA
from utils.datasets import make_loader
from utils.inference import predict, sigmoid
from utils.label_files import class_names
from utils.run import Run
from utils.runtime.device import choose_device

LR = 1e-4


class Timed(NamedTuple):
    """Milliseconds per image with images from files and from memory, and the values that were computed."""

    from_files: float
    from_memory: float
    result: np.ndarray


def time_training(settings: Settings) -> Iterator[Row]:
    """Time training steps on images from files; the limit is the same with one batch that is in memory."""
    yield compare(settings, "training", textbook_training, our_training, "gradients")


def time_validation(settings: Settings) -> Iterator[Row]:
    """Time the scores of images from files; the limit is the same with one batch that is in memory."""
    yield compare(settings, "validation", textbook_validation, our_validation, "scores")


def compare(
    settings: Settings,
    stage: str,
    plain: Callable[[Settings], Timed],
    ours: Callable[[Settings], Timed],
    what: str,
) -> Row:
    """Time two functions in turns, each in its own process, and compare their results."""
    rounds = [(in_child(plain, settings), in_child(ours, settings)) for _ in range(settings.num_long_rounds)]
    expected, found = (timed.result for timed in rounds[0])
    # Untrained scores are all near 0.5, so compare what differs between them.
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean()))
    # Lower precision rounds so coarsely that the comparison finds only large errors.
    bound = 0.01 if settings.amp == "off" else 0.3
    size, amp = settings.img_size, "" if settings.amp == "off" else f", {settings.amp}"
    options = f"batch {settings.batch_size}{amp}{', compiled' if settings.compile else ''}"
    return Row(
        f"{stage}, ResNet-{settings.depth}, {size}×{size}, {options}",
        "ms/image",
        statistics.median(timed.from_files for timed, _ in rounds),
        statistics.median(timed.from_files for _, timed in rounds),
        1.5 if settings.device.type == "cpu" else 4,
        statistics.median(timed.from_memory for _, timed in rounds),
        "the same on data in memory",
        difference < bound,
        f"{what} to {difference:.0e}",
    )


def files(settings: Settings) -> list[str]:
    """Return the photograph of each sample of an epoch; photographs repeat if there are too few."""
    return list(itertools.islice(itertools.cycle(settings.photos), settings.batch_size * settings.num_steps))


def our_model(settings: Settings) -> tuple[Namespace, torch.nn.Module]:
    """Return main.py's options and its network for the benchmark, on the device."""
    words = ["--dataset", "coco", "--model", f"resnet{settings.depth}", "--pretrained", "none"]
    words += ["--img_size", str(settings.img_size), "--batch_size", str(settings.batch_size)]
    words += ["--lr", str(LR), "--warmup_epoch", "0"]
    words += ["--device", settings.device.type, "--amp", settings.amp]
    words += ["--compile"] if settings.compile else []
    with mock.patch.object(sys, "argv", ["main.py", *words]):
        options, _ = main.parse_args()
    return options, scale_down_branches(main.build_model(options, choose_device(options.device, options.amp)))


def textbook_model(settings: Settings) -> textbook.Network:
    """Return the textbook's network, on the device, with the weights that main.py's network starts from."""
    network = textbook.Network(settings.depth, 1, 0.1, NUM_CLASSES)
    torch.manual_seed(0)
    textbook.copy_weights(network, scale_down_branches(ResNet_CSRA(1, 0.1, NUM_CLASSES, settings.depth)))
    return network.to(settings.device)


def scale_down_branches(model: torch.nn.Module) -> torch.nn.Module:
    """Scale down each block's branch; in eval mode an untrained deep ResNet's values grow with each block."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.constant_(module.bn3.weight, 0.1)
    return model


def textbook_loader(settings: Settings, train: bool) -> DataLoader:
    paths = files(settings)
    return DataLoader(
        textbook.Photos(paths, random_targets(len(paths)), settings.img_size, train),
        settings.batch_size,
        shuffle=train,
        num_workers=settings.num_workers,
        pin_memory=settings.device.type == "cuda",
        persistent_workers=settings.num_workers > 0,
    )


def our_loader(settings: Settings, train: bool) -> DataLoader:
    dataset = our_images(files(settings), settings.img_size, train)
    return make_loader(dataset, settings.batch_size, settings.num_workers, settings.device)


def textbook_training(settings: Settings) -> Timed:
    """Time the textbook's epoch; the result is a sample of the gradients of one small batch."""
    network, device = textbook_model(settings), settings.device
    images, targets = small_batch(settings)
    network.train()
    with without_tf32():
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(images / 255), targets.float())
        loss.backward()
    gradients = sample([*network.trunk.parameters(), *network.heads.parameters()])
    loader = textbook_loader(settings, train=True)
    textbook.train(network, loader, LR, device)
    milliseconds = time_epoch(lambda: textbook.train(network, loader, LR, device), loader, device)
    return Timed(milliseconds, math.nan, gradients)


def our_training(settings: Settings) -> Timed:
    """Time main.py's epoch; the result is a sample of the gradients of one small batch."""
    options, model = our_model(settings)
    device = settings.device
    optimizer = main.build_optimizer(model, options)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=options.amp == "fp16")

    def epoch(loader: DataLoader | InMemory) -> None:
        run = Run(options, class_names("coco"), model, optimizer, scaler)
        run.save = lambda: None  # the time to write files is not of interest
        main.train_one_epoch(run, model, loader, device)

    loader = our_loader(settings, train=True)
    images, targets = small_batch(settings)
    with without_tf32():
        epoch(InMemory(loader, (images, targets, None), 1))
    gradients = sample(model.parameters())
    epoch(loader)
    from_files = time_epoch(lambda: epoch(loader), loader, device)
    images, targets, _ = next(iter(loader))
    memory = InMemory(loader, (images.to(device), targets.to(device), None), len(loader))
    return Timed(from_files, time_epoch(lambda: epoch(memory), loader, device), gradients)


def small_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Return two images, uint8, and their targets on the device."""
    dataset = our_images(files(settings)[:2], settings.img_size, train=False)
    images, targets, _ = next(iter(make_loader(dataset, 2, 0, torch.device("cpu"))))
    return images.to(settings.device), targets.to(settings.device)


def sample(parameters: Iterable[Tensor]) -> np.ndarray:
    """Return every hundredth gradient of each parameter as one array, in an order that ignores strides."""
    return np.concatenate([p.grad.float().contiguous().flatten()[::100].cpu().numpy() for p in parameters])


def textbook_validation(settings: Settings) -> Timed:
    """Time the textbook's scores."""
    network, device = textbook_model(settings), settings.device
    loader = textbook_loader(settings, train=False)
    with without_tf32():
        scores = textbook.predict(network, loader, device)
    milliseconds = time_epoch(lambda: textbook.predict(network, loader, device), loader, device)
    return Timed(milliseconds, math.nan, scores)


def our_validation(settings: Settings) -> Timed:
    """Time the scores as val.py computes them."""
    options, model = our_model(settings)
    device = settings.device

    def scores(loader: DataLoader | InMemory) -> np.ndarray:
        return sigmoid(predict(model, loader, device, options.amp))

    loader = our_loader(settings, train=False)
    with without_tf32():
        result = scores(loader)
    from_files = time_epoch(lambda: scores(loader), loader, device)
    images, targets, indices = next(iter(loader))
    memory = InMemory(loader, (images.to(device), targets, indices), len(loader))
    return Timed(from_files, time_epoch(lambda: scores(memory), loader, device), result)


class InMemory:
    """Stands in for a loader: it yields the same batch `num_steps` times."""

    def __init__(self, loader: DataLoader, batch: tuple, num_steps: int):
        self.dataset, self.batch_sampler = loader.dataset, SimpleNamespace(epoch=0)
        self.batch, self.num_steps = batch, num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[tuple]:
        return itertools.repeat(self.batch, self.num_steps)


def time_epoch(action: Callable[[], Any], loader: DataLoader, device: torch.device) -> float:
    """Return the milliseconds per image of an epoch, including the work that it leaves to a GPU."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return 1000 * (time.perf_counter() - start) / len(loader.dataset)
