"""The stages training and validation: a ResNet by the textbook and by main.py's own functions."""

import gc
import itertools
import math
import statistics
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.data import DataLoader
from torchvision.models.resnet import Bottleneck

import main
from benchmarks import textbook
from benchmarks.inputs import NUM_CLASSES, our_images, random_targets
from benchmarks.timing import Row, Settings, Variant, find_target, in_child, synchronize, without_tf32
from pipeline.resnet_csra import TRUNK, ResNet_CSRA
from utils.data.classes import class_names
from utils.data.loaders import EvaluationLoader, TrainingLoader
from utils.inference.outputs import compute_outputs, sigmoid
from utils.runtime.device import choose_device
from utils.runtime.progress import ProgressLines
from utils.training.folder import RunFolder
from utils.training.run import Run
from utils.training.state import Progress

LR = 1e-4
# The largest difference, as a share of what varies, in float32 and in lower precision. The gradients of an
# untrained network are so noisy in lower precision that the comparison finds only large errors.
BOUNDS = {"gradients": (0.01, 0.5), "scores": (0.01, 0.05)}


class Timed(NamedTuple):
    """Milliseconds per image with images from files and from memory, and the values that were computed."""

    from_files: float
    from_memory: float
    result: np.ndarray


Timer = Callable[..., Timed]  # of Settings, and for ours of a Variant too


def time_training(settings: Settings) -> Iterator[Row]:
    """Time training steps on images from files; the limit is the same with one batch that is in memory."""
    yield from compare(settings, "training", textbook_training, our_training, "gradients")


def time_validation(settings: Settings) -> Iterator[Row]:
    """Time the scores of images from files; the limit is the same with one batch that is in memory."""
    yield from compare(settings, "validation", textbook_validation, our_validation, "scores")


def compare(settings: Settings, stage: str, plain: Timer, own: Timer, what: str) -> Iterator[Row]:
    """Time the textbook's function and all variants of ours in turns, and compare their results."""
    calls = [(plain, settings), *((own, settings, variant) for variant in settings.variants)]
    rounds = [[call(*words) for words in calls] for _ in range(settings.num_long_rounds)]
    textbook_rounds, *our_rounds = zip(*rounds)
    size, batch = settings.img_size, settings.batch_size
    for variant, ours in zip(settings.variants, our_rounds):
        precision = variant.describe(settings.device)
        name = f"{stage}, ResNet-{settings.depth}, {size}×{size}, batch {batch}, {precision}"
        costs = [statistics.median(one.from_files for one in timed) for timed in (ours, textbook_rounds)]
        target = find_target(settings.device, stage, variant.amp) if batch >= 16 else None
        limit = statistics.median(one.from_memory for one in ours)
        same, check = judge(ours[0].result, textbook_rounds[0].result, what, variant.amp)
        yield Row(name, "ms/image", *costs, target, limit, "the same on data in memory", same, check)


def judge(found: np.ndarray, expected: np.ndarray, what: str, amp: str) -> tuple[bool, str]:
    """Return whether scores or gradients agree, and how closely."""
    # Untrained scores are all near 0.5, so compare what differs between them.
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean()))
    return difference < BOUNDS[what][amp != "off"], f"{what} to {difference:.0e}"


def call(function: Timer, settings: Settings, *arguments) -> Timed:
    """Call a function in a new process; on a GPU in this one, where a fault gives NaN."""
    if settings.device.type != "cuda":
        return in_child(function, settings, *arguments)
    torch.compiler.reset()
    gc.collect()  # frees the memory of the networks before
    torch.backends.cudnn.benchmark = False  # the default; main.py turns it on
    try:
        return function(settings, *arguments)
    except Exception:  # noqa: BLE001 (a fault must not end the measurements; it is printed)
        traceback.print_exc()
        return Timed(math.nan, math.nan, np.array(math.nan))


def files(settings: Settings) -> list[str]:
    """Return the photograph of each sample of an epoch; photographs repeat if there are too few."""
    return list(itertools.islice(itertools.cycle(settings.photos), settings.batch_size * settings.num_steps))


def our_model(settings: Settings, variant: Variant) -> tuple[Namespace, nn.Module]:
    """Return main.py's options and its network for the benchmark, on the device."""
    words = ["--dataset", "coco", "--model", f"resnet{settings.depth}", "--pretrained", "none"]
    words += ["--img_size", str(settings.img_size), "--batch_size", str(settings.batch_size)]
    words += ["--lr", str(LR), "--warmup_epoch", "0", "--device", settings.device.type]
    words += ["--amp", variant.amp, *(["--compile"] if variant.compile else [])]
    with mock.patch.object(sys, "argv", ["main.py", *words]):
        options = main.resolve(main.make_parser().parse_args())
    model = scale_down_branches(main.build_model(options, choose_device(options.device)))
    if variant.compile not in ("", "default"):
        model.compile(mode=variant.compile)  # main.py has no option for it
    if variant.fold:
        trunk = nn.Sequential(*(getattr(model, name) for name in TRUNK))
        model.features = fuse(trunk.eval()).forward  # pixels are not normalised for the data set coco
    return options, model


def textbook_model(settings: Settings) -> textbook.Network:
    """Return the textbook's network, on the device, with the weights that main.py's network starts from."""
    network = textbook.Network(settings.depth, 1, 0.1, NUM_CLASSES)
    torch.manual_seed(0)
    textbook.copy_weights(network, scale_down_branches(ResNet_CSRA(1, 0.1, NUM_CLASSES, settings.depth)))
    return network.to(settings.device)


def scale_down_branches(model: nn.Module) -> nn.Module:
    """Scale down each block's branch; in eval mode an untrained deep ResNet's values grow with each block."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.1)
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
    make_loader = TrainingLoader if train else EvaluationLoader
    return make_loader(dataset, settings.batch_size, settings.num_workers, settings.device)


def textbook_training(settings: Settings) -> Timed:
    """Time the textbook's epoch; the result is a sample of the gradients of one batch."""
    network, device = textbook_model(settings), settings.device
    images, targets = check_batch(settings)
    network.train()
    with without_tf32():
        loss = nn.functional.binary_cross_entropy_with_logits(network(images / 255), targets.float())
        loss.backward()
    gradients = sample([*network.trunk.parameters(), *network.heads.parameters()])
    loader = textbook_loader(settings, train=True)
    textbook.train(network, loader, LR, device)
    milliseconds = time_epoch(lambda: textbook.train(network, loader, LR, device), loader, device)
    return Timed(milliseconds, math.nan, gradients)


def our_training(settings: Settings, variant: Variant) -> Timed:
    """Time main.py's epoch; the result is a sample of the gradients of one batch."""
    model, epoch = our_epoch(settings, variant)
    loader, device = our_loader(settings, train=True), settings.device
    with without_tf32():
        epoch(InMemory(loader, (*check_batch(settings), None), 1))
    gradients = sample(model.parameters())
    epoch(loader)
    from_files = time_epoch(lambda: epoch(loader), loader, device)
    memory = in_memory(loader, device)
    return Timed(from_files, time_epoch(lambda: epoch(memory), loader, device), gradients)


def our_epoch(settings: Settings, variant: Variant) -> tuple[nn.Module, Callable[[Any], None]]:
    """Return main.py's network, and main.py's training of it for one epoch of a loader."""
    options, model = our_model(settings, variant)
    state = main.build_state(model, options)
    fp16 = options.amp == "fp16"
    state.scaler = torch.amp.GradScaler(settings.device.type, init_scale=2.0**10, enabled=fp16)

    def epoch(loader: DataLoader | InMemory) -> None:
        state.progress = Progress()
        num_images = len(loader.dataset)
        run = Run(options, class_names("coco"), "", num_images, len(loader), state, RunFolder())
        # The time to write files is not of interest.
        with mock.patch("utils.training.saving.gather_and_save"):
            main.train_one_epoch(run, model, loader, ProgressLines(options.print_freq, math.inf))

    return model, epoch


def check_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Return images, uint8, and their targets on the device: two, or a whole batch on a GPU.

    A batch of another size would be compiled again.
    """
    count = settings.batch_size if settings.device.type == "cuda" else 2
    dataset = our_images(files(settings)[:count], settings.img_size, train=False)
    images, targets, _ = next(iter(EvaluationLoader(dataset, count, 0, torch.device("cpu"))))
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


def our_validation(settings: Settings, variant: Variant) -> Timed:
    """Time the scores as val.py computes them."""
    options, model = our_model(settings, variant)
    device = settings.device
    # A CUDA graph writes its output to the same memory in every step.
    forward = (lambda images: model(images).clone()) if variant.compile == "reduce-overhead" else None

    def scores(loader: DataLoader | InMemory) -> np.ndarray:
        return sigmoid(compute_outputs(model, loader, device, options.amp, forward))

    loader = our_loader(settings, train=False)
    with without_tf32():
        result = scores(loader)
    from_files = time_epoch(lambda: scores(loader), loader, device)
    memory = in_memory(loader, device)
    return Timed(from_files, time_epoch(lambda: scores(memory), loader, device), result)


class InMemory:
    """Stands in for a loader: it yields the same batch `num_steps` times."""

    def __init__(self, loader: DataLoader, batch: tuple, num_steps: int):
        self.dataset = loader.dataset
        self.batch, self.num_steps = batch, num_steps

    def __len__(self) -> int:
        return self.num_steps

    def set_epoch(self, epoch: int, start: int) -> None:
        """Change nothing: all epochs are the same."""

    def __iter__(self) -> Iterator[tuple]:
        return itertools.repeat(self.batch, self.num_steps)


def in_memory(loader: DataLoader, device: torch.device) -> InMemory:
    """Return a stand-in that yields the loader's first batch, on the device, as often as it has batches."""
    images, targets, indices = next(iter(loader))
    return InMemory(loader, (images.to(device), targets.to(device), indices), len(loader))


def time_epoch(action: Callable[[], Any], loader: DataLoader, device: torch.device) -> float:
    """Return the milliseconds per image of an epoch, including the work that it leaves to a GPU."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return 1000 * (time.perf_counter() - start) / len(loader.dataset)
