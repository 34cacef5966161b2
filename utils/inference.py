"""Running a model: from a loader's images to scores and metrics."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.datasets import IGNORED, DatasetSpec, to_float
from utils.evaluation import evaluate
from utils.runtime.cli import UserError
from utils.runtime.device import autocast
from utils.runtime.distributed import WORLD_SIZE, gather
from utils.runtime.interrupt import stop_if_asked
from utils.runtime.progress import progress


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    spec: DatasetSpec,
    amp: str = "off",
    forward: Callable[[Tensor], Tensor] | None = None,
) -> np.ndarray:
    """Return the logits (N, C) float64 of the loader's data set, row i being sample i of it.

    forward: what to compute from images (B, 3, S, S) instead of logits; its (B, ...) become (N, ...).
    Each of several processes computes the batches its loader gives it, and returns the rows of all. Rows go
    by the index that comes with each sample, so the loader's order does not matter; the row of a sample that
    never came is NaN.
    """
    forward = forward or model
    model.eval()
    torch.backends.cudnn.benchmark = False  # its choice of algorithm, made by timing, may differ by process
    batches = []
    with progress(len(loader.dataset), "evaluate") as bar:
        for images, _, index in loader:
            stop_if_asked()
            with autocast(device, amp):
                logits = forward(to_float(images, device, spec))
            batches.append((index, logits))  # left on the device: fetching would wait for it
            bar.update(min(len(images) * WORLD_SIZE, bar.total - bar.n))
    mine = [(index.numpy(), logits.cpu().double().numpy()) for index, logits in batches]
    found = list(itertools.chain.from_iterable(gather(mine)))
    logits = np.full((len(loader.dataset), *found[0][1].shape[1:]), np.nan)
    for index, rows in found:
        logits[index] = rows
    return logits


def augmented(forward: Callable[[Tensor], Tensor], tta: str) -> Callable[[Tensor], Tensor]:
    """Return a function of images (B, 3, S, S), for "flip" its mean over images and their mirror images."""
    return (lambda images: (forward(images) + forward(images.flip(3))) / 2) if tta == "flip" else forward


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Turn logits into scores, in float64: in float32 every logit above 17 gives exactly 1."""
    return torch.from_numpy(logits).double().sigmoid().numpy()


def evaluate_model(
    model: nn.Module, loader: DataLoader, device: torch.device, spec: DatasetSpec, amp: str = "off"
) -> dict:
    """Return the metrics of `evaluate` for the model on the loader's data set; UserError for NaN scores."""
    return evaluate_scores(sigmoid(predict(model, loader, device, spec, amp)), loader.dataset.targets)


def evaluate_scores(scores: np.ndarray, targets: np.ndarray) -> dict:
    """Return the metrics of `evaluate` for scores and targets (N, C); UserError for NaN scores."""
    try:
        return evaluate(scores, targets == 1, ignore=targets == IGNORED)
    except ValueError as error:
        raise UserError(
            f"{error}: the weights are damaged, or training diverged and needs a lower --lr"
        ) from None
