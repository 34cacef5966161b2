"""Training and validation of a ResNet-101 by the textbook and by main.py's own functions."""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.resnet import Bottleneck

import main
from benchmarks import textbook
from benchmarks.inputs import CLASSES, IMG_SIZE, our_images, random_targets
from benchmarks.timing import Row, in_child, synchronize
from pipeline.resnet_csra import ResNet_CSRA
from utils.datasets import make_loader
from utils.inference import predict, sigmoid
from utils.label_files import class_names
from utils.run import Run
from utils.runtime.device import choose_device


class Timed(NamedTuple):
    """Milliseconds per image from files, the same from memory, and what was computed."""

    files: float
    memory: float
    result: Any


def time_training(args: argparse.Namespace) -> Iterator[Row]:
    """Steps of main.py's loop on a ResNet-101, from files; the limit is the same on one batch in memory."""
    yield compare(args, "training", textbook_training, our_training, "gradients")


def time_validation(args: argparse.Namespace) -> Iterator[Row]:
    """Scores of photographs by a ResNet-101, from files; the limit is the same on one batch in memory."""
    yield compare(args, "validation", textbook_validation, our_validation, "scores")


def compare(
    args: argparse.Namespace,
    stage: str,
    plain: Callable[..., Timed],
    ours: Callable[..., Timed],
    what: str,
) -> Row:
    """Time two functions in turns, each in a process of its own, and compare their results."""
    batch_size, steps, rounds = plan(args)
    files = list(itertools.islice(itertools.cycle(args.photos), batch_size * steps))
    results = [
        (in_child(plain, files, batch_size, args), in_child(ours, files, batch_size, args))
        for _ in range(rounds)
    ]
    expected, found = (timed.result for timed in results[0])
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    # In lower precision it shows only that nothing is wrong by a large factor.
    bound = 0.01 if args.amp == "off" else 0.3
    return Row(
        f"{stage}, ResNet-101, 448×448, batch {batch_size}{mode(args)}",
        "ms/image",
        statistics.median(timed.files for timed, _ in results),
        statistics.median(timed.files for _, timed in results),
        1.5 if args.device == "cpu" else 4,
        statistics.median(timed.memory for _, timed in results),
        "the same on data in memory",
        difference < bound,
        f"{what} to {difference:.0e}",
    )


def plan(args: argparse.Namespace) -> tuple[int, int, int]:
    """Return batch size, steps and rounds of train and val."""
    gpu = args.device == "cuda"
    batch_size = args.batch_size or (4 if args.quick and not gpu else 16)
    return batch_size, (40 if gpu else 2), (1 if args.quick else 2)


def mode(args: argparse.Namespace) -> str:
    """Return the options of ours that differ from the defaults."""
    return (f", {args.amp}" if args.amp != "off" else "") + (", compiled" if args.compile else "")


def our_model(args: argparse.Namespace, batch_size: int) -> tuple[argparse.Namespace, torch.nn.Module]:
    """Return main.py's arguments and network for the benchmark, on the device."""
    options = ["--dataset", "coco", "--pretrained", "none", "--lr", "1e-4", "--warmup_epoch", "0"]
    options += ["--batch_size", str(batch_size), "--device", args.device, "--amp", args.amp]
    sys.argv = ["main.py", *options, *(["--compile"] if args.compile else [])]
    arguments, _ = main.parse_args()
    return arguments, calm(main.build_model(arguments, choose_device(args.device, args.amp)))


def textbook_model(args: argparse.Namespace) -> tuple[textbook.Network, torch.device]:
    """Return the textbook's network with the weights that main.py's starts from, on the device."""
    device = torch.device(args.device)
    network = textbook.Network(101, 1, 0.1, CLASSES)
    torch.manual_seed(0)
    textbook.copy_weights(network, calm(ResNet_CSRA(1, 0.1, CLASSES, depth=101)))
    return network.to(device), device


def calm(model: torch.nn.Module) -> torch.nn.Module:
    """Scale each block's branch down: in eval mode an untrained ResNet-101's values grow with every block."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.constant_(module.bn3.weight, 0.1)
    return model


def textbook_loader(files: list[str], batch_size: int, args: argparse.Namespace, train: bool) -> DataLoader:
    return DataLoader(
        textbook.Photos(files, random_targets(len(files)), IMG_SIZE, train),
        batch_size,
        shuffle=train,
        num_workers=args.num_workers,
        pin_memory=args.device == "cuda",
        persistent_workers=args.num_workers > 0,
    )


def textbook_training(files: list[str], batch_size: int, args: argparse.Namespace) -> Timed:
    """Time the textbook's epoch; the result is a sample of the gradients of one small batch."""
    network, device = textbook_model(args)
    images, targets = small_batch(files, device)
    network.train()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(images / 255), targets.float())
        loss.backward()
    gradients = sample([*network.trunk.parameters(), *network.heads.parameters()])
    loader = textbook_loader(files, batch_size, args, train=True)
    textbook.train(network, loader, 1e-4, device)
    taken = milliseconds(lambda: textbook.train(network, loader, 1e-4, device), device)
    return Timed(taken / len(files), math.nan, gradients)


def our_training(files: list[str], batch_size: int, args: argparse.Namespace) -> Timed:
    """Time main.py's epoch; the result is a sample of the gradients of one small batch."""
    arguments, model = our_model(args, batch_size)
    device = torch.device(args.device)
    optimizer = main.build_optimizer(model, arguments)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=args.amp == "fp16")

    def epoch(source: Any) -> None:
        run = Run(arguments, class_names("coco"), model, optimizer, scaler)
        run.save = lambda: None
        main.train_one_epoch(run, model, source, device)

    loader = make_loader(our_images(files, train=True), batch_size, args.num_workers, device)
    images, targets = small_batch(files, device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        epoch(InMemory(loader, (images, targets, None), 1))
    gradients = sample(model.parameters())
    epoch(loader)
    taken = milliseconds(lambda: epoch(loader), device)
    images, targets, _ = next(iter(loader))
    memory = InMemory(loader, (images.to(device), targets.to(device), None), len(loader))
    return Timed(taken / len(files), milliseconds(lambda: epoch(memory), device) / len(files), gradients)


def small_batch(files: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two images, uint8, and their targets on the device."""
    dataset = our_images(files[:2], train=False)
    images, targets, _ = next(iter(make_loader(dataset, 2, 0, torch.device("cpu"))))
    return images.to(device), targets.to(device)


def sample(parameters: Iterable[Tensor]) -> np.ndarray:
    """Return every hundredth gradient of each parameter in a row; contiguous order, whatever the memory's."""
    return np.concatenate([p.grad.float().contiguous().flatten()[::100].cpu().numpy() for p in parameters])


def textbook_validation(files: list[str], batch_size: int, args: argparse.Namespace) -> Timed:
    """Time the textbook's scores."""
    network, device = textbook_model(args)
    loader = textbook_loader(files, batch_size, args, train=False)
    scores = textbook.predict(network, loader, device)
    taken = milliseconds(lambda: textbook.predict(network, loader, device), device)
    return Timed(taken / len(files), math.nan, scores)


def our_validation(files: list[str], batch_size: int, args: argparse.Namespace) -> Timed:
    """Time val.py's scores."""
    _, model = our_model(args, batch_size)
    device = torch.device(args.device)
    loader = make_loader(our_images(files, train=False), batch_size, args.num_workers, device)

    def scores(source: Any) -> np.ndarray:
        return sigmoid(predict(model, source, device, args.amp))

    result = scores(loader)
    taken = milliseconds(lambda: scores(loader), device)
    images, targets, indices = next(iter(loader))
    memory = InMemory(loader, (images.to(device), targets, indices), len(loader))
    return Timed(taken / len(files), milliseconds(lambda: scores(memory), device) / len(files), result)


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
