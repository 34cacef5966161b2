"""Training and validation of a ResNet-101 by the textbook and by main.py's own functions."""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.resnet import Bottleneck

import main
from benchmarks import textbook
from benchmarks.inputs import CLASSES, IMG_SIZE, our_images, random_targets
from benchmarks.timing import Row, in_child, synchronize
from utils.datasets import DATASETS, make_loader
from utils.device import choose_device
from utils.inference import predict

SPEC = DATASETS["coco"]


def time_training(args: argparse.Namespace) -> Iterator[Row]:
    """Steps of main.py's loop on a ResNet-101, from files; the limit is the same on one batch in memory."""
    batch_size, steps, rounds = plan(args)
    options = (args.photos, batch_size, steps, args)
    results = [
        (in_child(textbook_training, *options), in_child(our_training, *options)) for _ in range(rounds)
    ]
    plain, (ours, limit) = (
        statistics.median(r[0] for r in results),
        (statistics.median(r[1][i] for r in results) for i in (0, 1)),
    )
    difference = results[0][1][2]
    yield Row(
        f"training, ResNet-101, 448×448, batch {batch_size}{mode(args)}",
        "ms/image",
        plain,
        ours,
        target(args),
        limit,
        "the step on data in memory",
        difference < (0.01 if args.amp == "off" else 0.3),
        f"gradients to {difference:.0e}",
    )


def time_validation(args: argparse.Namespace) -> Iterator[Row]:
    """Scores of photographs by a ResNet-101, from files; the limit is the same on one batch in memory."""
    batch_size, steps, rounds = plan(args)
    options = (args.photos, batch_size, steps, args)
    results = [
        (in_child(textbook_validation, *options), in_child(our_validation, *options)) for _ in range(rounds)
    ]
    plain = statistics.median(seconds for (seconds, _), _ in results)
    ours, limit = (statistics.median(r[1][i] for r in results) for i in (0, 1))
    difference = np.abs(results[0][0][1] - results[0][1][2]).max().item()
    yield Row(
        f"validation, ResNet-101, 448×448, batch {batch_size}{mode(args)}",
        "ms/image",
        plain,
        ours,
        target(args),
        limit,
        "the model on data in memory",
        difference < (1e-3 if args.amp == "off" else 0.05),
        f"scores to {difference:.0e}",
    )


def plan(args: argparse.Namespace) -> tuple[int, int, int]:
    """Return batch size, steps and rounds of train and val."""
    gpu = args.device == "cuda"
    batch_size = args.batch_size or (4 if args.quick and not gpu else 16)
    return batch_size, (40 if gpu else 2), (1 if args.quick else 2)


def target(args: argparse.Namespace) -> str:
    """Return the ratio aimed at."""
    return "≥ 1.5" if args.device == "cpu" else "≥ 4"


def mode(args: argparse.Namespace) -> str:
    """Return the options of ours that differ from the defaults."""
    return (f", {args.amp}" if args.amp != "off" else "") + (", compiled" if args.compile else "")


def our_model(args: argparse.Namespace, batch_size: int) -> tuple[argparse.Namespace, torch.nn.Module]:
    """Return main.py's arguments and network for the benchmark, on the device."""
    options = ["--dataset", "coco", "--pretrained", "none", "--lr", "1e-4", "--warmup_epoch", "0"]
    options += ["--batch_size", str(batch_size), "--device", args.device, "--amp", args.amp]
    sys.argv = ["main.py", *options, *(["--compile"] if args.compile else [])]
    arguments = main.parse_args()
    return arguments, calm(main.build_model(arguments, choose_device(args.device, args.amp)))


def textbook_model(args: argparse.Namespace) -> tuple[textbook.Network, torch.device]:
    """Return the textbook's network with the weights that main.py's starts from, on the device."""
    device = torch.device(args.device)
    network = textbook.Network(101, 1, 0.1, CLASSES)
    torch.manual_seed(0)
    textbook.copy_weights(network, calm(main.ResNet_CSRA(1, 0.1, CLASSES, depth=101)))
    return network.to(device), device


def calm(model: torch.nn.Module) -> torch.nn.Module:
    """Scale each block's branch down: in eval mode an untrained ResNet-101's values grow with every block."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.constant_(module.bn3.weight, 0.1)
    return model


def textbook_training(photos: list[str], batch_size: int, steps: int, args: argparse.Namespace) -> float:
    network, device = textbook_model(args)
    files = list(itertools.islice(itertools.cycle(photos), batch_size * steps))
    dataset = textbook.Photos(files, random_targets(len(files)), IMG_SIZE, train=True)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=args.num_workers)
    textbook.train(network, loader, 1e-4, device)
    return milliseconds(lambda: textbook.train(network, loader, 1e-4, device), device) / len(files)


def our_training(
    photos: list[str], batch_size: int, steps: int, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Return milliseconds per image from files and from memory, and the relative difference of gradients."""
    arguments, model = our_model(args, batch_size)
    device = next(model.parameters()).device
    files = list(itertools.islice(itertools.cycle(photos), batch_size * steps))
    loader = make_loader(our_images(files, seed=0), batch_size, args.num_workers, device)
    optimizer = main.build_optimizer(model, arguments)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")

    def epoch(source: Any) -> float:
        return main.train_one_epoch(model, source, optimizer, scaler, 0, arguments, device, SPEC)

    images, targets, indices = next(iter(loader))
    images, targets = images.to(device), targets.to(device)
    network, _ = textbook_model(args)
    expected = gradients_of_textbook(network, images[:2].contiguous() / 255, targets[:2].float())
    epoch(InMemory(loader, (images[:2], targets[:2], indices[:2]), 1))
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    difference = ((found - expected).norm() / expected.norm()).item()
    del network

    epoch(loader)
    seconds = milliseconds(lambda: epoch(loader), device)
    memory = InMemory(loader, (images, targets, indices), steps)
    limit = milliseconds(lambda: epoch(memory), device)
    return seconds / len(files), limit / len(files), difference


def gradients_of_textbook(network: textbook.Network, images: Tensor, targets: Tensor) -> Tensor:
    """Return all gradients of the mean loss in one row, ordered as main.py's network has its parameters."""
    network.train()
    torch.nn.functional.binary_cross_entropy_with_logits(network(images), targets).backward()
    parameters = (*network.trunk.parameters(), *network.heads.parameters())
    return torch.cat([p.grad.flatten() for p in parameters])


def textbook_validation(
    photos: list[str], batch_size: int, steps: int, args: argparse.Namespace
) -> tuple[float, np.ndarray]:
    network, device = textbook_model(args)
    files = list(itertools.islice(itertools.cycle(photos), batch_size * steps))
    dataset = textbook.Photos(files, random_targets(len(files)), IMG_SIZE, train=False)
    loader = DataLoader(dataset, batch_size, num_workers=args.num_workers)
    scores = textbook.predict(network, loader, device)
    seconds = milliseconds(lambda: textbook.predict(network, loader, device), device)
    return seconds / len(files), scores


def our_validation(
    photos: list[str], batch_size: int, steps: int, args: argparse.Namespace
) -> tuple[float, float, np.ndarray]:
    """Return milliseconds per image from files and from memory, and the scores."""
    _, model = our_model(args, batch_size)
    device = next(model.parameters()).device
    files = list(itertools.islice(itertools.cycle(photos), batch_size * steps))
    loader = make_loader(our_images(files, seed=None), batch_size, args.num_workers, device)
    scores = predict(model, loader, device, SPEC, args.amp)
    seconds = milliseconds(lambda: predict(model, loader, device, SPEC, args.amp), device)
    images, targets, indices = next(iter(loader))
    memory = InMemory(loader, (images.to(device), targets, indices), steps)
    limit = milliseconds(lambda: predict(model, memory, device, SPEC, args.amp), device)
    return seconds / len(files), limit / len(files), scores


class InMemory:
    """A stand-in for a loader that gives one batch `steps` times."""

    def __init__(self, loader: DataLoader, batch: tuple, steps: int):
        self.dataset, self.batch_sampler = loader.dataset, SimpleNamespace(epoch=0)
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple]:
        return itertools.repeat(self.batch, self.steps)


def milliseconds(action: Callable[[], Any], device: torch.device) -> float:
    """Return how long an action takes, what it leaves to a GPU included."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return 1000 * (time.perf_counter() - start)
