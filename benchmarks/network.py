"""The stages training and validation: a ResNet by the textbook and by main.py's own functions."""

import contextlib
import gc
import itertools
import math
import statistics
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.resnet import Bottleneck

import main
from benchmarks import textbook
from benchmarks.inputs import NUM_CLASSES, our_images, random_targets
from benchmarks.settings import Settings, Targets, Variant, find_target
from benchmarks.table import Row
from benchmarks.timing import in_child, in_turns, seconds, synchronize, without_tf32
from pipeline.folding import folded
from pipeline.models import BuildOptions
from pipeline.network import Network
from pipeline.resnet_csra import ResNet_CSRA
from utils.data.classes import class_names
from utils.data.loaders import EvaluationLoader, TrainingLoader
from utils.data.samples import Batch
from utils.inference.outputs import BatchLoader, compute_outputs, sigmoid
from utils.inference.predictor import Predictor
from utils.inference.speed_up import speed_up
from utils.runtime.device import choose_device, set_up_device
from utils.runtime.progress import ProgressLines
from utils.training.folder import RunFolder
from utils.training.run import Run
from utils.training.state import Progress

LR = 1e-4
LIMIT_NAME = "the same on data in memory"  # one batch, on the device
TRAINING_TARGETS: Targets = {"cpu": (1.85, 3.4), "cuda": (1.5, 4)}
VALIDATION_TARGETS: Targets = {"cpu": (1.75, 3.4), "cuda": (1.5, 4)}


class Timed(NamedTuple):
    """Milliseconds per image with images from files and from memory, and the values that were computed."""

    from_files: float
    from_memory: float
    result: np.ndarray


# A version of the work: the textbook's, or ours in one variant. It takes the settings.
Version = Callable[[Settings], Timed]


def time_training(settings: Settings) -> Iterator[Row]:
    """Time training steps on images from files, and compare the gradients of one batch."""
    versions = [partial(our_training, variant=variant) for variant in settings.variants]
    plain, *ours = run_versions(settings, textbook_training, *versions)
    for variant, timed in zip(settings.variants, ours):
        name = row_name("training", settings, variant)
        costs = plain.from_files, timed.from_files, timed.from_memory
        target = network_target(TRAINING_TARGETS, settings, variant)
        difference = relative_difference(timed.result, plain.result)
        # The gradients of an untrained network are noisy in lower precision: only large errors are found.
        bound = 0.01 if variant.amp == "off" else 0.5
        check = f"gradients to {difference:.0e}"
        yield Row(name, "ms/image", *costs, LIMIT_NAME, target, difference < bound, check)


def time_validation(settings: Settings) -> Iterator[Row]:
    """Time the scores of images from files, and compare them."""
    versions = [partial(our_validation, variant=variant) for variant in settings.variants]
    plain, *ours = run_versions(settings, textbook_validation, *versions)
    for variant, timed in zip(settings.variants, ours):
        name = row_name("validation", settings, variant)
        costs = plain.from_files, timed.from_files, timed.from_memory
        target = network_target(VALIDATION_TARGETS, settings, variant)
        difference = relative_difference(timed.result, plain.result)
        bound = 0.01 if variant.amp == "off" else 0.05
        check = f"scores to {difference:.0e}"
        yield Row(name, "ms/image", *costs, LIMIT_NAME, target, difference < bound, check)


def row_name(stage: str, settings: Settings, variant: Variant) -> str:
    """Name a stage with what it computes on."""
    size = settings.sizes.img_size
    network = f"ResNet-{settings.sizes.depth}, {size}×{size}, batch {settings.batch_size}"
    return f"{stage}, {network}, {variant.title(settings.device)}"


def network_target(targets: Targets, settings: Settings, variant: Variant) -> float | None:
    """Return the target of a variant; small batches have none, because they gain less."""
    return find_target(targets, settings.device, variant.amp) if settings.batch_size >= 16 else None


def run_versions(settings: Settings, *versions: Version) -> list[Timed]:
    """Run the versions in turns; return of each the median times and its first result."""
    calls = [partial(run_version, version, settings) for version in versions]
    medians = []
    for timed in in_turns(settings.sizes.long_rounds, *calls):
        from_files = statistics.median(one.from_files for one in timed)
        from_memory = statistics.median(one.from_memory for one in timed)
        medians.append(Timed(from_files, from_memory, timed[0].result))
    return medians


def run_version(version: Version, settings: Settings) -> Timed:
    """Run a version in a new process; on a GPU in this one, where a fault gives NaN."""
    if settings.device.type != "cuda":
        return in_child(version, settings)
    torch.compiler.reset()
    gc.collect()  # frees the memory of the networks before
    torch.backends.cudnn.benchmark = False  # the default; main.py turns it on
    try:
        return version(settings)
    except Exception:  # noqa: BLE001 (a fault must not end the measurements; it is printed)
        traceback.print_exc()
        return Timed(math.nan, math.nan, np.array(math.nan))


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the difference as a share of what varies: untrained scores are all near 0.5."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean()))


def textbook_training(settings: Settings) -> Timed:
    """Time the textbook's epoch; the result is a sample of the gradients of one batch."""
    network = textbook_model(settings)
    batch = check_batch(settings)
    network.train()
    with without_tf32():
        logits = network(batch.images / 255)
        nn.functional.binary_cross_entropy_with_logits(logits, batch.targets.float()).backward()
    gradients = sample_gradients([*network.trunk.parameters(), *network.heads.parameters()])

    loader = textbook_loader(settings, train=True)
    textbook.train(network, loader, LR, settings.device)  # a warm-up
    taken = time_epoch(lambda: textbook.train(network, loader, LR, settings.device), settings)
    return Timed(taken, math.nan, gradients)


def our_training(settings: Settings, variant: Variant) -> Timed:
    """Time main.py's epoch; the result is a sample of the gradients of one batch."""
    model, epoch = our_epoch(settings, variant)
    loader = training_loader(settings)
    with without_tf32():
        epoch(in_memory(loader, check_batch(settings), num_steps=1))
    gradients = sample_gradients(model.parameters())

    epoch(loader)  # a warm-up
    from_files = time_epoch(lambda: epoch(loader), settings)
    memory = in_memory(loader, first_batch(loader, settings.device), len(loader))
    from_memory = time_epoch(lambda: epoch(memory), settings)
    return Timed(from_files, from_memory, gradients)


def textbook_validation(settings: Settings) -> Timed:
    """Time the textbook's scores."""
    network = textbook_model(settings)
    loader = textbook_loader(settings, train=False)
    with without_tf32():
        scores = textbook.predict(network, loader, settings.device)
    taken = time_epoch(lambda: textbook.predict(network, loader, settings.device), settings)
    return Timed(taken, math.nan, scores)


def our_validation(settings: Settings, variant: Variant) -> Timed:
    """Time the scores as val.py computes them."""
    options, model = our_model(settings, variant)
    loader = evaluation_loader(settings)
    network = validation_network(options, model, variant, len(loader.dataset))
    # A CUDA graph writes its output to the same memory in every step.
    forward = (lambda images: network(images).clone()) if variant.compile == "reduce-overhead" else None

    def scores(images: BatchLoader) -> np.ndarray:
        return sigmoid(compute_outputs(network, images, settings.device, options.amp, forward))

    with without_tf32():
        result = scores(loader)
    from_files = time_epoch(lambda: scores(loader), settings)
    memory = in_memory(loader, first_batch(loader, settings.device), len(loader))
    from_memory = time_epoch(lambda: scores(memory), settings)
    return Timed(from_files, from_memory, result)


def validation_network(options: Namespace, model: Network, variant: Variant, num_images: int) -> Network:
    """Return the network that val.py makes of a model for a number of images.

    With CUDA graphs, which val.py does not offer, it is compiled here.
    """
    if variant.compile == "reduce-overhead":
        network = folded(model.eval())
        network.compile(mode=variant.compile)
        return network
    architecture = BuildOptions(
        model=options.model,
        num_heads=options.num_heads,
        num_cls=options.num_cls,
        img_size=options.img_size,
        lam=options.lam,
    )
    predictor = Predictor(model, class_names("coco"), architecture, config={})
    use_compile = True if variant.compile else None  # None: as val.py chooses
    args = Namespace(compile=use_compile, amp=options.amp, batch_size=options.batch_size)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
        return speed_up(predictor, args, num_images).runner


def textbook_model(settings: Settings) -> textbook.Network:
    """Return the textbook's network, on the device, with the weights that main.py's network starts from."""
    depth = settings.sizes.depth
    network = textbook.Network(f"resnet{depth}", 1, 0.1, NUM_CLASSES)
    textbook.copy_weights(network, start_network(depth))
    return network.to(settings.device)


def our_model(settings: Settings, variant: Variant) -> tuple[Namespace, Network]:
    """Return main.py's options and its network for the benchmark, on the device."""
    words = ["--dataset", "coco", "--model", f"resnet{settings.sizes.depth}", "--pretrained", "none"]
    words += ["--img_size", str(settings.sizes.img_size), "--batch_size", str(settings.batch_size)]
    words += ["--lr", str(LR), "--warmup_epoch", "0"]
    words += ["--device", settings.device.type, "--amp", variant.amp]
    options = main.resolve(main.make_parser().parse_args(words))
    device = choose_device(options.device)
    set_up_device(device)
    model = main.build_model(options, device)
    scale_down_branches(model)
    return options, model


def start_network(depth: int) -> ResNet_CSRA:
    """Return the network that our_model returns, from the same seed."""
    torch.manual_seed(0)
    model = ResNet_CSRA(1, 0.1, NUM_CLASSES, depth)
    scale_down_branches(model)
    return model


def scale_down_branches(model: nn.Module) -> None:
    """Scale down each block's branch; in eval mode an untrained deep ResNet's values grow with each block."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.1)


def our_epoch(settings: Settings, variant: Variant) -> tuple[Network, Callable[[TrainingLoader], None]]:
    """Return main.py's network, and main.py's training of it for one epoch of a loader."""
    options, model = our_model(settings, variant)
    if variant.compile:
        model.compile(mode=variant.compile)
    state = main.build_state(model, options)
    fp16 = options.amp == "fp16"
    state.scaler = torch.amp.GradScaler(settings.device.type, init_scale=2.0**10, enabled=fp16)

    def epoch(loader: TrainingLoader) -> None:
        state.progress = Progress()
        num_images = len(loader.dataset)
        run = Run(options, class_names("coco"), "", num_images, len(loader), state, RunFolder())
        # The time to write files is not of interest.
        with mock.patch("utils.training.saving.gather_and_save"):
            main.train_one_epoch(run, model, loader, ProgressLines(options.print_freq, math.inf))

    return model, epoch


def epoch_photos(settings: Settings) -> list[str]:
    """Return the photograph of each sample of an epoch; photographs repeat if there are too few."""
    number = settings.batch_size * settings.num_steps
    return list(itertools.islice(itertools.cycle(settings.photos), number))


def textbook_loader(settings: Settings, train: bool) -> DataLoader:
    photos = epoch_photos(settings)
    return DataLoader(
        textbook.Photos(photos, random_targets(len(photos)), settings.sizes.img_size, train),
        settings.batch_size,
        shuffle=train,
        num_workers=settings.num_workers,
        pin_memory=settings.device.type == "cuda",
        persistent_workers=settings.num_workers > 0,
    )


def training_loader(settings: Settings) -> TrainingLoader:
    images = our_images(epoch_photos(settings), settings.sizes.img_size, train=True)
    return TrainingLoader(images, settings.batch_size, settings.num_workers, settings.device)


def evaluation_loader(settings: Settings) -> EvaluationLoader:
    images = our_images(epoch_photos(settings), settings.sizes.img_size, train=False)
    return EvaluationLoader(images, settings.batch_size, settings.num_workers, settings.device)


def check_batch(settings: Settings) -> Batch:
    """Return a batch on the device for the comparison of gradients: two images, or a whole one on a GPU.

    A batch of another size would be compiled again.
    """
    count = settings.batch_size if settings.device.type == "cuda" else 2
    images = our_images(epoch_photos(settings)[:count], settings.sizes.img_size, train=False)
    return first_batch(EvaluationLoader(images, count, 0, torch.device("cpu")), settings.device)


def first_batch(loader: DataLoader, device: torch.device) -> Batch:
    """Return the first batch of a loader, on the device."""
    images, targets, indices = next(iter(loader))
    return Batch(images.to(device), targets.to(device), indices)


def sample_gradients(parameters: Iterable[Tensor]) -> np.ndarray:
    """Return every hundredth gradient of each parameter as one array, in an order that ignores strides."""
    gradients = [p.grad.float().contiguous().flatten() for p in parameters if p.grad is not None]
    return np.concatenate([gradient[::100].cpu().numpy() for gradient in gradients])


class InMemory:
    """Stands in for a loader: it yields the same batch `num_steps` times."""

    def __init__(self, loader: DataLoader, batch: Batch, num_steps: int):
        self.dataset = loader.dataset
        self.batch = batch
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def set_epoch(self, epoch: int, start: int) -> None:
        """Change nothing: all epochs are the same."""

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch, self.num_steps)


def in_memory(loader: DataLoader, batch: Batch, num_steps: int) -> TrainingLoader:
    """Return a stand-in for a loader that yields the same batch in every step."""
    return cast(TrainingLoader, InMemory(loader, batch, num_steps))


def time_epoch(epoch: Callable[[], object], settings: Settings) -> float:
    """Return the milliseconds per image of an epoch, including the work that it leaves to a GPU."""

    def work() -> None:
        epoch()
        synchronize(settings.device)

    synchronize(settings.device)
    return 1000 * seconds(work) / (settings.batch_size * settings.num_steps)
