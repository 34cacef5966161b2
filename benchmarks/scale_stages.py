"""The stages of scale.py that call functions; each runs in a process of its own.

python benchmarks/scale_stages.py STAGE ARGUMENT... prints the seconds of the stage, without the imports, and
the peak memory of the process in MiB.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script

import itertools
import multiprocessing
import time

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy as np
import torch

from benchmarks.timing import Usage
from pipeline.csra import MHA
from pipeline.resnet_csra import ResNet_CSRA
from utils.data.datasets import dataset_spec
from utils.data.loaders import TrainingLoader
from utils.data.order import TrainingBatches
from utils.data.samples import load_split
from utils.evaluation import evaluate
from utils.runtime.device import set_up_device
from utils.training.losses import bce_loss

BATCH_SIZE = 16
IMG_SIZE = 64  # of the loader, in pixels
NUM_WORKERS = 8
NUM_FEATURES = 2048  # of the map that the head is given
MAP_SIDE = 14


def load_labels(dataset: str) -> Usage:
    """Load the training split of a data set: read its label file, and check that its images exist."""
    start = time.perf_counter()
    load_split(dataset_spec(dataset), "train", IMG_SIZE)
    return used_since(start)


def make_order(num_images: int) -> Usage:
    """Make all the batches of an epoch, without their images."""
    start = time.perf_counter()
    for _ in TrainingBatches(num_images, BATCH_SIZE, seed=0):
        pass
    return used_since(start)


def load_first_batch(dataset: str) -> Usage:
    """Wait for the first batch of an epoch from 8 workers; the memory of the workers counts, too."""
    images = load_split(dataset_spec(dataset), "train", IMG_SIZE, train=True)
    loader = TrainingLoader(images, BATCH_SIZE, NUM_WORKERS, torch.device("cpu"))
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - start
    for _ in itertools.islice(batches, 2 * NUM_WORKERS):
        pass  # now each worker has loaded images
    return Usage(seconds, peak_memory())


def evaluate_scores(num_images: int, num_classes: int) -> Usage:
    """Compute all metrics of random scores."""
    rng = np.random.default_rng(0)
    scores = rng.random((num_images, num_classes), dtype=np.float32)
    targets = rng.random((num_images, num_classes), dtype=np.float32) < 2 / num_classes
    start = time.perf_counter()
    evaluate(scores, targets)
    return used_since(start)


def train_head(num_heads: int, num_classes: int) -> Usage:
    """Take a training step of the classifier alone: forward, loss, backward."""
    set_up_device(torch.device("cpu"))
    head = MHA(num_heads, 0.1, NUM_FEATURES, num_classes)
    shape = (BATCH_SIZE, NUM_FEATURES, MAP_SIDE, MAP_SIDE)
    features = torch.rand(shape).to(memory_format=torch.channels_last).requires_grad_()
    targets = torch.zeros(BATCH_SIZE, num_classes, dtype=torch.int8)
    for _ in range(2):  # the first step is slower: it also gets its memory from the system
        start = time.perf_counter()
        loss, count = bce_loss(head(features), targets)
        (loss / count).backward()
    return used_since(start)


def save_model(path: str, num_classes: int) -> Usage:
    """Write the checkpoint that demo.py labels with."""
    start = time.perf_counter()
    torch.save(ResNet_CSRA(1, 0.1, num_classes, depth=18).state_dict(), path)
    return used_since(start)


STAGES = {
    stage.__name__: stage
    for stage in (
        load_labels,
        make_order,
        load_first_batch,
        evaluate_scores,
        train_head,
        save_model,
    )
}


def used_since(start: float) -> Usage:
    """Return the seconds since a time of time.perf_counter, and the peak memory."""
    return Usage(time.perf_counter() - start, peak_memory())


def peak_memory() -> float:
    """Return the peak memory of this process in MiB, with what its living children hold for themselves."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    for child in multiprocessing.active_children():
        for line in Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_"):
                peak += int(line.split()[1])
    return peak / 1024


def main() -> None:
    stage, *words = sys.argv[1:]
    arguments = [int(word) if word.isdigit() else word for word in words]
    print(*STAGES[stage](*arguments))


if __name__ == "__main__":
    main()
