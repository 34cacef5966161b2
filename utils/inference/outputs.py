"""Running a network: from a loader's images to its outputs, in the order of the data set."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.samples import Batch, LabelledImages, to_float
from utils.runtime import interrupt
from utils.runtime.device import autocast
from utils.runtime.distributed import gather
from utils.runtime.processes import WORLD_SIZE
from utils.runtime.progress import ProgressLines, progress_bar

MAX_OUTPUT_BYTES = 2**25  # of outputs that wait to be fetched, or are exchanged at once
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
        if self.waiting_bytes > MAX_OUTPUT_BYTES:
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
        size = max(1, MAX_OUTPUT_BYTES // max(1, values[:1].nbytes))
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
