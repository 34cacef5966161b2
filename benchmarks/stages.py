"""The stages that time one part, by the textbook and by the scripts' own code, without the network."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import hflip, resized_crop, to_tensor

from benchmarks import textbook
from benchmarks.inputs import NUM_CLASSES, make_coco, our_images, random_targets
from benchmarks.timing import (
    REPOSITORY,
    Row,
    Settings,
    Target,
    Variant,
    find_target,
    in_turns,
    run_measured,
    synchronize,
    without_tf32,
)
from pipeline.csra import MHA
from utils.data.decoding import load_image
from utils.data.loaders import EvaluationLoader, TrainingLoader
from utils.data.samples import LabelledImages
from utils.data.transforms import random_crop, train_transform
from utils.evaluation import evaluate
from utils.runtime.device import AMP_DTYPES, autocast

BATCH_SIZE = 16  # of the loader and the head


def time_loader(settings: Settings) -> Iterator[Row]:
    """Time the loading of images on one core, from a file to a batch, in milliseconds per image."""
    photos, num_photos = settings.photos, len(settings.photos)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, train, target in (("train", True, 2.2), ("test", False, 2.3)):
        plain = textbook.Photos(photos, random_targets(num_photos), settings.img_size, train)
        ours = our_images(photos, settings.img_size, train)
        plain_loader = DataLoader(plain, BATCH_SIZE, shuffle=train)
        make_loader = TrainingLoader if train else EvaluationLoader
        our_loader = make_loader(ours, BATCH_SIZE, 0, torch.device("cpu"))
        seconds = in_turns(
            settings.num_rounds,
            lambda loader=plain_loader: [None for _ in loader],
            lambda loader=our_loader: [None for _ in loader],
            lambda: [load_image(path) for path in photos],
        )
        plain_time, our_time, limit = (1000 * s / num_photos for s in seconds)
        difference = max(pixel_difference(plain, ours, index) for index in range(num_photos))
        stage, check = f"loader, {name} transform, one core", f"pixels within {difference:.0f}/255"
        costs = (our_time, plain_time, Target(target), limit, "decoding alone")
        yield Row(stage, "ms/image", *costs, difference <= 2, check)
    torch.set_num_threads(num_threads)


def pixel_difference(plain: textbook.Photos, ours: LabelledImages, index: int) -> float:
    """Return the largest difference in a sample, in 1/255; in training both get the same crop and flip."""
    if not ours.train:
        expected, image = plain[index][0], ours[0, index, True][0]
    else:
        size, rng = ours.img_size, np.random.default_rng(index)
        decoded = load_image(plain.paths[index])
        image = train_transform(decoded, size, np.random.default_rng(index))
        left, top, right, bottom = random_crop(decoded.shape[2], decoded.shape[1], rng)
        photo = Image.open(plain.paths[index]).convert("RGB")
        expected = resized_crop(photo, top, left, bottom - top, right - left, [size, size])
        expected = to_tensor(hflip(expected) if rng.random() < 0.5 else expected)
    return (255 * expected - image).abs().max().round().item()


def time_head(settings: Settings) -> Iterator[Row]:
    """Time a forward and backward pass of six heads; the limit is their three matrix products."""
    device, num_heads, num_features, side = settings.device, 6, 2048, settings.img_size // 32
    ours = MHA(num_heads, 0.5, num_features, NUM_CLASSES).to(device)
    plain = textbook.Heads(num_heads, 0.5, num_features, NUM_CLASSES).to(device)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values())))
    features = torch.rand(BATCH_SIZE, num_features, side, side, device=device)
    # The trunk's output has the type that autocast computes in.
    dtypes = {amp: AMP_DTYPES[amp] or torch.float32 for amp in settings.amps}
    inputs = {amp: features.to(dtypes[amp], memory_format=torch.channels_last) for amp in settings.amps}
    num_places, num_maps = BATCH_SIZE * side**2, num_heads * NUM_CLASSES
    shapes = ((num_places, num_features), (num_maps, num_features), (num_places, num_maps))
    matrices = {amp: [torch.rand(shape, device=device).to(dtypes[amp]) for shape in shapes] for amp in inputs}

    def step(head: torch.nn.Module, x: Tensor, amp: str = "off") -> list[Tensor]:
        x = x.detach().requires_grad_()
        with autocast(device, amp):
            logits = head(x)
        gradients = torch.autograd.grad(logits.square().mean(), [x, *head.parameters()])
        synchronize(device)
        return [logits.detach(), *gradients]

    def products(amp: str) -> None:
        places, weights, scores = matrices[amp]
        _ = places @ weights.T, scores @ weights, scores.T @ places
        synchronize(device)

    torch.backends.cuda.matmul.allow_tf32 = True  # as in cuDNN's convolutions, where it is the default
    actions = [lambda amp=amp: step(ours, inputs[amp], amp) for amp in settings.amps]
    actions += [lambda amp=amp: products(amp) for amp in settings.amps]
    seconds = in_turns(2 * settings.num_rounds, lambda: step(plain, features), *actions)
    plain_time, *times = (1000 * s for s in seconds)
    for amp, our_time, limit in zip(settings.amps, times, times[len(times) // 2 :]):
        with without_tf32():
            results = zip(step(plain, features), step(ours, inputs[amp], amp))
        logits, *gradients = (((a - b).norm() / a.norm()).item() for a, b in results)
        # Rounding moves maxima, and with them the gradients of the head with T = ∞.
        same = logits < (1e-4 if amp == "off" else 0.02) and max(gradients) < (1e-4 if amp == "off" else 0.3)
        check = f"logits to {logits:.0e}, gradients to {max(gradients):.0e}"
        name = f"CSRA, {num_heads} heads, {NUM_CLASSES} classes, {side}×{side}, batch {BATCH_SIZE}"
        name, target = f"{name}, {Variant(amp).describe(device)}", find_target(device, "head", amp)
        yield Row(name, "ms", our_time, plain_time, target, limit, "its matrix products", same, check)


def time_metrics(settings: Settings) -> Iterator[Row]:
    """Time all metrics, in seconds; the limit is one sort of the scores of each class."""
    targets = random_targets(settings.num_scored_images)
    noise = np.random.default_rng(1).normal(size=targets.shape)
    scores = 1 / (1 + np.exp(2 - 4 * targets - 2 * noise))
    columns = np.ascontiguousarray(scores.T)
    results = {}
    seconds = in_turns(
        settings.num_long_rounds + 1,
        lambda: results.update(textbook=textbook.evaluate(scores, targets.astype(int))),
        lambda: results.update(ours=evaluate(scores, targets)),
        lambda: np.sort(columns, axis=1),
    )
    difference = max(abs(float(value) - results["ours"][name]) for name, value in results["textbook"].items())
    plain_time, our_time, limit = seconds
    name, check = f"metrics, {settings.num_scored_images:,} × {NUM_CLASSES}", f"metrics to {difference:.0e}"
    yield Row(name, "s", our_time, plain_time, Target(30), limit, "sorting alone", difference < 1e-9, check)


def time_startup(settings: Settings) -> Iterator[Row]:
    """Time `val.py --help`, in seconds; the limit is the time to import torch and torchvision."""
    imports, answer = (
        lambda command=command: subprocess.run([sys.executable, *command], check=True, capture_output=True)
        for command in (["-c", "import torch, torchvision"], [str(REPOSITORY / "val.py"), "--help"])
    )
    limit, our_time = in_turns(settings.num_rounds, imports, answer)
    yield Row("start-up: val.py --help", "s", our_time, limit, None, limit, "the imports")


def time_prepare(settings: Settings) -> Iterator[Row]:
    """Time prepare_coco, in seconds and in peak memory; the limit is pycocotools' load of the same files."""
    folder = settings.folder / "COCO2014"
    labels = make_coco(folder, settings.num_coco_images, settings.num_coco_boxes)
    load = "import sys; from pycocotools.coco import COCO; [COCO(path) for path in sys.argv[1:]]"
    files = [str(folder / "annotations" / f"instances_{split}2014.json") for split in ("train", "val")]
    script = [str(REPOSITORY / "utils" / "prepare_coco.py"), "--data_path", str(folder)]
    measured = [
        (run_measured(["-c", load, *files], settings.folder), run_measured(script, settings.folder))
        for _ in range(settings.num_long_rounds)
    ]
    entries = json.loads((settings.folder / "data" / "coco" / "train_coco2014.json").read_text())
    found = {
        Path(entry["img_path"]).name: {i for i, value in enumerate(entry["target"], start=1) if value}
        for entry in entries
    }
    same = found == labels and len(entries) == len(labels)
    for index, (what, unit, target) in enumerate((("", "s", 1 / 1.3), (", peak memory", "MiB", 1 / 1.2))):
        limit, our_time = (statistics.median(pair[side][index] for pair in measured) for side in (0, 1))
        name = f"prepare_coco, {settings.num_coco_images:,} images{what}"
        yield Row(
            name, unit, our_time, limit, Target(target), limit, "pycocotools' load", same, "labels equal"
        )
