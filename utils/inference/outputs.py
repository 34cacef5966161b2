"""Running a network: from a loader's images to scores and metrics."""

import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.labels import IGNORED, Labels
from utils.data.samples import Batch, LabelledImages, to_float
from utils.metrics.multilabel import Metrics, evaluate
from utils.runtime import interrupt
from utils.runtime.device import autocast
from utils.runtime.distributed import gather
from utils.runtime.errors import reporting_value_errors
from utils.runtime.processes import WORLD_SIZE
from utils.runtime.progress import ProgressLines, progress_bar

Forward = Callable[[Tensor], Tensor]  # images (B, 3, S, S) in [0, 1] to outputs (B, ...)


class BatchLoader(Protocol):
    """What compute_outputs needs of a loader: the batches of this process, and their data set."""

    @property
    def dataset(self) -> LabelledImages: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Rows(NamedTuple):
    """Outputs of a batch: the indices of its samples (B,), and a row of values for each (B, ...)."""

    indices: np.ndarray
    values: np.ndarray


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
    batches = []
    lines = ProgressLines(every=100, first_after=5)
    with without_trials(), progress_bar(len(loader.dataset), "evaluate") as bar:
        for images, _, indices in loader:
            interrupt.stop_if_asked()
            with autocast(device, amp):
                outputs = forward(to_float(images, device))
            batches.append((indices, outputs))  # fetching the outputs from a GPU here would wait for it
            bar.update(min(len(images) * WORLD_SIZE, len(loader.dataset) - bar.n))
            if bar.disable and lines.due(len(batches)):
                lines.printed()
                print(f"evaluated {len(batches)} of {len(loader)} batches")
    own_rows = [Rows(indices.numpy(), to_numpy(outputs)) for indices, outputs in batches]
    return place(list(chain.from_iterable(gather(own_rows))), len(loader.dataset))


def to_numpy(outputs: Tensor) -> np.ndarray:
    """Return outputs as an array, of float32 if their precision is lower: NumPy has no bfloat16."""
    return outputs.to("cpu", torch.promote_types(outputs.dtype, torch.float32)).numpy()


def place(all_rows: list[Rows], num_samples: int) -> np.ndarray:
    """Return an array (num_samples, ...) with each row at the index of its sample, and NaN elsewhere."""
    values = all_rows[0].values
    placed = np.full((num_samples, *values.shape[1:]), np.nan, values.dtype)
    for indices, values in all_rows:
        placed[indices] = values
    return placed


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


def evaluate_model(model: nn.Module, loader: BatchLoader, device: torch.device, amp: str = "off") -> Metrics:
    """Return the metrics of `evaluate` for a model on the loader's data set; UserError for NaN scores."""
    return evaluate_scores(sigmoid(compute_outputs(model, loader, device, amp)), loader.dataset.labels)


def evaluate_scores(scores: np.ndarray, labels: Labels, threshold: float | np.ndarray = 0.5) -> Metrics:
    """Return the metrics of `evaluate` for scores (N, C) and their labels; UserError for NaN scores."""
    targets = labels.targets.rows()
    positives = targets == 1
    ignore = targets == IGNORED
    with reporting_value_errors("the weights are damaged, or training needs a lower --lr"):
        return evaluate(scores, positives, ignore, threshold, labels.unknown_is_negative)
