"""The stages that time one part in this process: the loader, the head and the metrics."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import hflip, resized_crop, to_tensor

from benchmarks import textbook
from benchmarks.inputs import NUM_CLASSES, our_images, random_targets
from benchmarks.settings import Settings, Targets, Variant, find_target
from benchmarks.table import Row
from benchmarks.timing import synchronize, time_in_turns, without_tf32
from pipeline.csra import MHA
from utils.data.decoding import load_image
from utils.data.loaders import EvaluationLoader, TrainingLoader
from utils.data.order import SampleKey
from utils.data.samples import LabelledImages
from utils.data.transforms import random_crop, train_transform
from utils.evaluation import evaluate
from utils.runtime.device import AMP_DTYPES, autocast

BATCH_SIZE = 16  # of the loader and the head
NUM_HEADS = 6
NUM_FEATURES = 2048
HEAD_TARGETS: Targets = {"cpu": (1.55, 2.3), "cuda": (2, 2)}


def time_loader(settings: Settings) -> Iterator[Row]:
    """Time the loading of images on one core, from a file to a batch; the limit is decoding alone."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield loader_row(settings, train=True)
    yield loader_row(settings, train=False)
    torch.set_num_threads(num_threads)


def loader_row(settings: Settings, train: bool) -> Row:
    """Time the loading of images with the transform of training or of testing."""
    photos = settings.photos
    plain = textbook.Photos(photos, random_targets(len(photos)), settings.sizes.img_size, train)
    ours = our_images(photos, settings.sizes.img_size, train)
    plain_loader = DataLoader(plain, BATCH_SIZE, shuffle=train)
    loader_class = TrainingLoader if train else EvaluationLoader
    our_loader = loader_class(ours, BATCH_SIZE, 0, torch.device("cpu"))
    plain_time, our_time, limit = time_in_turns(
        settings.sizes.rounds,
        lambda: load_all(plain_loader),
        lambda: load_all(our_loader),
        lambda: [load_image(path) for path in photos],
    )
    compare = compare_training_sample if train else compare_test_sample
    difference = max(compare(plain, ours, index) for index in range(len(photos)))
    name = f"loader, {'train' if train else 'test'} transform, one core"
    milliseconds = 1000 / len(photos)  # per image
    costs = milliseconds * plain_time, milliseconds * our_time, milliseconds * limit
    target = 2.2 if train else 2.3
    check = f"pixels within {difference:.0f}/255"
    return Row(name, "ms/image", *costs, "decoding alone", target, difference <= 2, check)


def load_all(loader: DataLoader) -> None:
    """Load every batch, and keep none."""
    for _ in loader:
        pass


def compare_test_sample(plain: textbook.Photos, ours: LabelledImages, index: int) -> float:
    """Return the largest difference between the two versions' pixels of a sample, in 1/255."""
    expected, _ = plain[index]
    image = ours[SampleKey(0, index, True)].image
    return pixel_difference(image, expected)


def compare_training_sample(plain: textbook.Photos, ours: LabelledImages, index: int) -> float:
    """Return the largest difference as in testing, where both versions get the same crop and flip."""
    path = plain.paths[index]
    decoded = load_image(path)
    image = train_transform(decoded, ours.img_size, np.random.default_rng(index))

    rng = np.random.default_rng(index)
    left, top, right, bottom = random_crop(decoded.shape[2], decoded.shape[1], rng)
    photo = Image.open(path).convert("RGB")
    photo = resized_crop(photo, top, left, bottom - top, right - left, [ours.img_size, ours.img_size])
    if rng.random() < 0.5:
        photo = hflip(photo)
    return pixel_difference(image, to_tensor(photo))


def pixel_difference(image: Tensor, expected: Tensor) -> float:
    """Return the largest difference in 1/255, of pixels in 0 to 255 and expected ones in [0, 1]."""
    return (255 * expected - image).abs().max().round().item()


def time_head(settings: Settings) -> Iterator[Row]:
    """Time six heads in each precision."""
    torch.backends.cuda.matmul.allow_tf32 = True  # as in cuDNN's convolutions, where it is the default
    for amp in settings.amps:
        yield head_row(settings, amp)


def head_row(settings: Settings, amp: str) -> Row:
    """Time a forward and backward pass of six heads; the limit is their three matrix products."""
    device = settings.device
    side = settings.sizes.img_size // 32
    ours = MHA(NUM_HEADS, 0.5, NUM_FEATURES, NUM_CLASSES).to(device)
    plain = textbook.Heads(NUM_HEADS, 0.5, NUM_FEATURES, NUM_CLASSES).to(device)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values())))
    features = torch.rand(BATCH_SIZE, NUM_FEATURES, side, side, device=device)
    # The trunk's output has the type that autocast computes in.
    dtype = AMP_DTYPES[amp] or torch.float32
    our_features = features.to(dtype, memory_format=torch.channels_last)
    places = torch.rand(BATCH_SIZE * side**2, NUM_FEATURES, device=device).to(dtype)
    weights = torch.rand(NUM_HEADS * NUM_CLASSES, NUM_FEATURES, device=device).to(dtype)
    scores = torch.rand(len(places), len(weights), device=device).to(dtype)

    def products() -> None:
        _ = places @ weights.T, scores @ weights, scores.T @ places
        synchronize(device)

    plain_time, our_time, limit = time_in_turns(
        2 * settings.sizes.rounds,
        lambda: head_step(plain, features, "off"),
        lambda: head_step(ours, our_features, amp),
        products,
    )
    with without_tf32():
        expected = head_step(plain, features, "off")
        found = head_step(ours, our_features, amp)
    differences = [((a - b).norm() / a.norm()).item() for a, b in zip(expected, found)]
    logits = differences[0]
    gradients = max(differences[1:])
    # Rounding moves maxima, and with them the gradients of the head with T = ∞.
    logits_bound, gradients_bound = (1e-4, 1e-4) if amp == "off" else (0.02, 0.3)
    same = logits < logits_bound and gradients < gradients_bound
    shape = f"{NUM_HEADS} heads, {NUM_CLASSES} classes, {side}×{side}, batch {BATCH_SIZE}"
    name = f"CSRA, {shape}, {Variant(amp).title(device)}"
    target = find_target(HEAD_TARGETS, device, amp)
    check = f"logits to {logits:.0e}, gradients to {gradients:.0e}"
    costs = 1000 * plain_time, 1000 * our_time, 1000 * limit
    return Row(name, "ms", *costs, "its matrix products", target, same, check)


def head_step(head: torch.nn.Module, features: Tensor, amp: str) -> list[Tensor]:
    """Return the logits of a head, and the gradients of the features and of its weights."""
    x = features.detach().requires_grad_()
    with autocast(x.device, amp):
        logits = head(x)
    gradients = torch.autograd.grad(logits.square().mean(), [x, *head.parameters()])
    synchronize(x.device)
    return [logits.detach(), *gradients]


def time_metrics(settings: Settings) -> Iterator[Row]:
    """Time all metrics; the limit is one sort of the scores of each class."""
    num_images = settings.sizes.scored_images
    targets = random_targets(num_images)
    noise = np.random.default_rng(1).normal(size=targets.shape)
    scores = 1 / (1 + np.exp(2 - 4 * targets - 2 * noise))
    columns = np.ascontiguousarray(scores.T)
    plain_time, our_time, limit = time_in_turns(
        settings.sizes.long_rounds + 1,
        lambda: textbook.evaluate(scores, targets.astype(int)),
        lambda: evaluate(scores, targets),
        lambda: np.sort(columns, axis=1),
    )
    expected = textbook.evaluate(scores, targets.astype(int))
    found: dict[str, Any] = {**evaluate(scores, targets)}
    difference = max(abs(found[name] - float(value)) for name, value in expected.items())
    name = f"metrics, {num_images:,} × {NUM_CLASSES}"
    check = f"metrics to {difference:.0e}"
    yield Row(name, "s", plain_time, our_time, limit, "sorting alone", 30, difference < 1e-9, check)
