"""The stages that bench.py times, but for the network's: as the textbook does them, and as the scripts do."""

import argparse
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
from benchmarks.inputs import (
    CLASSES,
    COCO_BOXES,
    COCO_IMAGES,
    IMG_SIZE,
    make_coco,
    our_images,
    random_targets,
)
from benchmarks.timing import Row, in_turns, run_measured, synchronize
from pipeline.csra import MHA
from utils.datasets import LabelledImages, make_loader
from utils.evaluation import evaluate
from utils.runtime.device import choose_device
from utils.transforms import load_image, random_crop, train_transform

REPOSITORY = Path(__file__).resolve().parents[1]


def time_loader(args: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds per image on one core, from a file to a batch of 16."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count, cpu = len(args.photos), torch.device("cpu")
    for name, train, target in (("train", True, 2.0), ("test", False, 2.1)):
        plain = textbook.Photos(args.photos, random_targets(count), IMG_SIZE, train=train)
        ours = our_images(args.photos, train)
        loaders = DataLoader(plain, 16, shuffle=train), make_loader(ours, 16, 0, cpu)
        seconds = in_turns(
            3 if args.quick else 9,
            lambda a=loaders[0]: [None for _ in a],
            lambda b=loaders[1]: [None for _ in b],
            lambda: [load_image(path) for path in args.photos],
        )
        milliseconds = [1000 * s / count for s in seconds]
        difference = max(pixel_difference(plain, ours, index) for index in range(count))
        yield Row(
            f"loader, {name} transform, one core",
            "ms/image",
            *milliseconds[:2],
            target,
            milliseconds[2],
            "decoding alone",
            difference <= 2,
            f"pixels within {difference:.0f}/255",
        )
    torch.set_num_threads(threads)


def pixel_difference(plain: textbook.Photos, ours: LabelledImages, index: int) -> float:
    """Return the largest difference of a sample in 1/255; random crops and flips are given to both alike."""
    if not ours.train:
        expected, image = plain[index][0], ours[0, index, True][0]
    else:
        decoded = load_image(plain.paths[index])
        image = train_transform(decoded, IMG_SIZE, np.random.default_rng(index))
        rng = np.random.default_rng(index)
        left, top, right, bottom = random_crop(decoded.shape[2], decoded.shape[1], rng)
        photo = Image.open(plain.paths[index]).convert("RGB")
        expected = resized_crop(photo, top, left, bottom - top, right - left, [IMG_SIZE, IMG_SIZE])
        expected = to_tensor(hflip(expected) if rng.random() < 0.5 else expected)
    return (255 * expected - image).abs().max().round().item()


def time_head(args: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward of six heads over a batch of 16; the limit is its three matrix products."""
    device = choose_device(args.device)
    ours = MHA(6, 0.5, 2048, CLASSES).to(device)
    plain = textbook.Heads(6, 0.5, 2048, CLASSES).to(device)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values())))
    features = torch.rand(16, 2048, 14, 14, device=device)
    lasting = features.to(memory_format=torch.channels_last)
    places, weights = torch.rand(16 * 196, 2048, device=device), torch.rand(480, 2048, device=device)
    scores = torch.rand(16 * 196, 480, device=device)

    def step(head: torch.nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        logits = head(x)
        gradients = torch.autograd.grad(logits.square().mean(), [x, *head.parameters()])
        synchronize(device)
        return [logits.detach(), *gradients]

    # As cuDNN's convolutions do, so that the limit is one.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32

    def products() -> None:
        _ = places @ weights.T, scores @ weights, scores.T @ places
        synchronize(device)

    seconds = in_turns(
        5 if args.quick else 25, lambda: step(plain, features), lambda: step(ours, lasting), products
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which rounds the two differently
        results = zip(step(plain, features), step(ours, lasting))
    difference = max(((a - b).norm() / a.norm()).item() for a, b in results)
    yield Row(
        "CSRA, 6 heads, 80 classes, 14×14, batch 16",
        "ms",
        *(1000 * s for s in seconds[:2]),
        2,
        1000 * seconds[2],
        "its matrix products",
        difference < 1e-4,
        f"logits and gradients to {difference:.0e}",
    )


def time_metrics(args: argparse.Namespace) -> Iterator[Row]:
    """All metrics at the size of COCO's val2014; the limit is one sort of every class's scores."""
    images = 4_000 if args.quick else 40_137
    targets = random_targets(images)
    noise = np.random.default_rng(1).normal(size=targets.shape)
    scores = 1 / (1 + np.exp(2 - 4 * targets - 2 * noise))
    columns = np.ascontiguousarray(scores.T)
    results = {}
    seconds = in_turns(
        1,
        lambda: results.update(textbook=textbook.evaluate(scores, targets.astype(int))),
        lambda: results.update(ours=evaluate(scores, targets)),
        lambda: np.sort(columns, axis=1),
    )
    difference = max(abs(float(value) - results["ours"][name]) for name, value in results["textbook"].items())
    yield Row(
        f"metrics, {images:,} × {CLASSES}",
        "s",
        *seconds[:2],
        30,
        seconds[2],
        "sorting alone",
        difference < 1e-9,
        f"metrics to {difference:.0e}",
    )


def time_startup(args: argparse.Namespace) -> Iterator[Row]:
    """Seconds until val.py answers --help, at most 1 more than it takes to import torch and torchvision."""
    imports, answer = (
        lambda command=command: subprocess.run([sys.executable, *command], check=True, capture_output=True)
        for command in (["-c", "import torch, torchvision"], [str(REPOSITORY / "val.py"), "--help"])
    )
    limit, ours = in_turns(1 if args.quick else 5, imports, answer)
    yield Row("start-up: val.py --help", "s", limit, ours, None, limit, "the imports")


def time_prepare(args: argparse.Namespace) -> Iterator[Row]:
    """The whole of prepare_coco against pycocotools' loading of the same files: seconds and peak memory."""
    share = 0.1 if args.quick else 1
    images, boxes = int(COCO_IMAGES * share), int(COCO_BOXES * share)
    folder = args.folder / "COCO2014"
    labels = make_coco(folder, images, boxes)
    load = "import sys; from pycocotools.coco import COCO; [COCO(path) for path in sys.argv[1:]]"
    files = [str(folder / "annotations" / f"instances_{split}2014.json") for split in ("train", "val")]
    script = [str(REPOSITORY / "utils" / "prepare_coco.py"), "--data_path", str(folder)]
    figures = [
        (run_measured(["-c", load, *files], args.folder), run_measured(script, args.folder))
        for _ in range(1 if args.quick else 3)
    ]
    entries = json.loads((args.folder / "data" / "coco" / "train_coco2014.json").read_text())
    found = {
        Path(entry["img_path"]).name: {i for i, value in enumerate(entry["target"], start=1) if value}
        for entry in entries
    }
    for index, (what, unit, target) in enumerate((("", "s", 1 / 1.3), (", peak memory", "MiB", 1 / 1.2))):
        plain, ours = (statistics.median(figure[side][index] for figure in figures) for side in (0, 1))
        yield Row(
            f"prepare_coco, {images:,} images{what}",
            unit,
            plain,
            ours,
            target,
            plain,
            "pycocotools' load",
            found == labels,
            "labels equal",
        )
