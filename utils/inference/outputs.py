"""Running a network: from a loader's images to scores and metrics."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.data.labels import Labels
from utils.data.samples import Batch, LabelledImages, to_float
from utils.metrics.blocks import Scores, TargetLabels
from utils.metrics.multilabel import Metrics, check_no_nan, evaluate_blocks
from utils.runtime import interrupt
from utils.runtime.device import autocast
from utils.runtime.distributed import gather
from utils.runtime.errors import reporting_value_errors
from utils.runtime.processes import WORLD_SIZE
from utils.runtime.progress import ProgressLines, progress_bar

MAX_WAITING = 2**28  # bytes of outputs
NUM_READINGS = 3  # of the scores: for NaN, for average precision, and for precision and recall
Forward = Callable[[Tensor], Tensor]  # images (B, 3, S, S) in [0, 1] to outputs (B, ...)


class BatchLoader(Protocol):
    """What compute_outputs needs of a loader: the batches of this process, and their data set."""

    @property
    def dataset(self) -> LabelledImages: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@torch.inference_mode()
def compute_outputs(
    model: nn.Module, loader: BatchLoader, device: torch.device, amp: str = "off", call: Forward | None = None
) -> np.ndarray:
    """Return a network's logits (N, C) for the loader's data set; row i belongs to sample i.

    They are float32, which holds each logit of a lower precision exactly; float64 if the network is.
    call: a function of images to use instead of the network; its outputs (B, ...) are joined into (N, ...).
    Each process computes its own batches and returns the rows of all. Rows are placed by each sample's index,
    so the order of the loader does not matter; the rows of missing samples are NaN.
    """
    model.eval()
    forward = call or model
    rows = OutputRows(len(loader.dataset))
    lines = ProgressLines(every=100, first_after=5)
    with without_trials(), progress_bar(len(loader.dataset), "evaluate") as bar:
        for step, (images, _, indices) in enumerate(loader, start=1):
            interrupt.stop_if_asked()
            with autocast(device, amp):
                outputs = forward(to_float(images, device))
            rows.add(indices, outputs)
            bar.update(min(len(images) * WORLD_SIZE, len(loader.dataset) - bar.n))
            if bar.disable and lines.due(step):
                lines.printed()
                print(f"evaluated {step} of {len(loader)} batches")
    return rows.gathered()


class OutputRows:
    """Collects the outputs of all samples, each in the row of its index.

    The outputs of a batch wait on their device for those of others, because fetching them from a GPU waits
    for it. An array for all rows is made at the first of these moments, so that nothing is in memory twice.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.is_own = np.zeros(num_samples, bool)  # whether this process has computed a row
        self.values: np.ndarray | None = None  # (N, ...); NaN where nothing is known
        self.waiting: list[tuple[Tensor, Tensor]] = []  # the indices of samples, and their outputs
        self.waiting_bytes = 0

    def add(self, indices: Tensor, outputs: Tensor) -> None:
        """Add the outputs (B, ...) of a batch; indices: (B,), of its samples."""
        self.waiting.append((indices, outputs))
        self.waiting_bytes += outputs.nbytes
        if self.waiting_bytes > MAX_WAITING:
            self.fetch()

    def fetch(self) -> None:
        """Move the outputs that wait to their rows."""
        for indices, outputs in self.waiting:
            rows = to_numpy(outputs)
            if self.values is None:
                self.values = self.unknown(rows[:0])
            self.values[indices.numpy()] = rows
            self.is_own[indices.numpy()] = True
        self.waiting = []
        self.waiting_bytes = 0

    def unknown(self, like: np.ndarray) -> np.ndarray:
        """Return an array of NaN for all samples; like: (0, ...), a row's shape and type."""
        return np.full((self.num_samples, *like.shape[1:]), np.nan, like.dtype)

    def gathered(self) -> np.ndarray:
        """Return the outputs (N, ...) of all processes, which all call this."""
        self.fetch()
        forms = gather(None if self.values is None else self.values[:0])
        values = self.values
        if values is None:  # this process had no batch
            values = self.unknown(next(form for form in forms if form is not None))
        size = max(1, MAX_WAITING // max(1, values[:1].nbytes))
        for start in range(0, self.num_samples, size):
            own = start + np.flatnonzero(self.is_own[start : start + size])
            for indices, rows in gather((own, values[own])):
                values[indices] = rows
        return values


def to_numpy(outputs: Tensor) -> np.ndarray:
    """Return outputs as an array, of float32 if their precision is lower: NumPy has no bfloat16."""
    return outputs.to("cpu", torch.promote_types(outputs.dtype, torch.float32)).numpy()


@contextlib.contextmanager
def without_trials() -> Iterator[None]:
    """Keep cuDNN from choosing algorithms by timing them: scores could then differ by process."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def with_tta(forward: Forward, tta: str) -> Forward:
    """Return `forward`, or for "flip" a function that averages its outputs over images and mirror images."""
    if tta == "off":
        return forward
    return lambda images: mirrored_mean(forward(images), forward, images)


def mirrored_mean(outputs: Tensor, forward: Forward, images: Tensor) -> Tensor:
    """Return the mean of a function's outputs for images (B, 3, S, S) and of those for the mirror images."""
    return (outputs + forward(images.flip(3))) / 2


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return scores in float64: in float32 every logit above 17 would give exactly 1."""
    return torch.from_numpy(logits).to(torch.float64, copy=True).sigmoid_().numpy()


class LogitScores:
    """The scores of logits (N, C). They are computed in blocks, because in float64 all take much memory."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    @property
    def shape(self) -> tuple[int, ...]:
        return self.logits.shape

    def of_images(self, images: slice) -> np.ndarray:
        return sigmoid(self.logits[images])

    def of_classes(self, classes: slice) -> np.ndarray:
        return sigmoid(np.ascontiguousarray(self.logits[:, classes].T))


def evaluate_model(model: nn.Module, loader: BatchLoader, device: torch.device, amp: str = "off") -> Metrics:
    """Return the metrics of `evaluate` for a model on the loader's data set; UserError for NaN scores."""
    logits = compute_outputs(model, loader, device, amp)
    return evaluate_scores(LogitScores(logits), loader.dataset.labels)


def evaluate_scores(scores: Scores, labels: Labels, threshold: float | np.ndarray = 0.5) -> Metrics:
    """Return the metrics of `evaluate` for scores (N, C) and their labels; UserError for NaN scores."""
    num_scores = math.prod(scores.shape)
    with progress_bar(NUM_READINGS * num_scores, "metrics", unit="score", delay=1) as bar:
        watched = WatchedScores(scores, bar)
        with reporting_value_errors("the weights are damaged, or training needs a lower --lr"):
            check_no_nan(watched)
        return evaluate_blocks(watched, TargetLabels(labels.targets), threshold, labels.unknown_is_negative)


class WatchedScores:
    """Scores that move a progress bar as they are read."""

    def __init__(self, scores: Scores, bar: "tqdm[Any]") -> None:
        self.scores = scores
        self.shape = scores.shape
        self.bar = bar

    def of_images(self, images: slice) -> np.ndarray:
        return self.read(self.scores.of_images(images))

    def of_classes(self, classes: slice) -> np.ndarray:
        return self.read(self.scores.of_classes(classes))

    def read(self, block: np.ndarray) -> np.ndarray:
        """Return a block after moving the bar."""
        self.bar.update(block.size)
        return block
