"""The order of an epoch: which samples make up each batch, and which process takes them."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from utils.runtime.processes import RANK, WORLD_SIZE

# The streams of random numbers under a seed: the order of an epoch, and the augmentation of a sample.
ORDER = 0
AUGMENTATION = 1


class SampleKey(NamedTuple):
    """Names a sample of an epoch.

    epoch: from 0. row: its entry in the label file, from 0. counted: whether its labels count.
    """

    epoch: int
    row: int
    counted: bool


class TrainingBatches(Sampler[list[SampleKey]]):
    """The batches of a training epoch, in an order that depends on (seed, epoch) alone.

    Each process takes its share of every batch. If a share is empty, the process gets an image that does not
    count, so that all processes take the same number of steps.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = RANK, world_size: int = WORLD_SIZE
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 0) and the batch (from 0) at which the next iteration starts."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return math.ceil(self.num_samples / self.batch_size)

    def smallest_share(self) -> int:
        """Return the smallest number of images that a process is given in a step."""
        num_last = self.num_samples % self.batch_size or self.batch_size
        smallest_batch = min(self.batch_size, num_last)
        return max(1, smallest_batch // self.world_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.arange(self.num_samples)
        np.random.default_rng((ORDER, self.seed, self.epoch)).shuffle(order)
        for start in range(self.start * self.batch_size, self.num_samples, self.batch_size):
            batch = order[start : start + self.batch_size]
            share = batch[self.rank :: self.world_size].tolist()
            if share:
                yield [SampleKey(self.epoch, row, counted=True) for row in share]
            else:
                yield [SampleKey(self.epoch, int(batch[0]), counted=False)]


class EvaluationBatches(Sampler[list[SampleKey]]):
    """The batches of an evaluation, in order; the processes take whole batches in turns."""

    def __init__(self, num_samples: int, batch_size: int, rank: int = RANK, world_size: int = WORLD_SIZE):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.starts = range(rank * batch_size, num_samples, world_size * batch_size)  # rows

    def __len__(self) -> int:
        """Return the number of batches that this process takes."""
        return len(self.starts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in self.starts:
            rows = range(start, min(start + self.batch_size, self.num_samples))
            yield [SampleKey(0, row, counted=True) for row in rows]
