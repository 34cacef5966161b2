"""Running a network: from a loader's images to scores and metrics."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.csra import attended_scores
from pipeline.network import Network
from utils.data.label_files import IGNORED, Labels
from utils.data.samples import to_float
from utils.metrics.multilabel import Metrics, evaluate
from utils.runtime import interrupt
from utils.runtime.cli import reporting_value_errors
from utils.runtime.device import autocast
from utils.runtime.distributed import WORLD_SIZE, gather
from utils.runtime.progress import ProgressLines, progress


@torch.inference_mode()
def compute_outputs(
    model: nn.Module, loader: DataLoader, device: torch.device, amp: str = "off", call: Callable | None = None
) -> np.ndarray:
    """Return a network's logits (N, C) float64 for the loader's data set; row i belongs to sample i.

    call: a function of images to use instead of the network; its outputs (B, ...) are joined to (N, ...).
    Each process computes its own batches and returns the rows of all. Rows are placed by each sample's index,
    so the order of the loader does not matter; the rows of missing samples are NaN.
    """
    model.eval()
    torch.backends.cudnn.benchmark = False  # it picks algorithms by timing, so scores could differ by process
    batches = []
    lines = ProgressLines(every=100, first_after=5)
    with progress(len(loader.dataset), "evaluate") as bar:
        for images, _, index in loader:
            if interrupt.received:
                interrupt.stop()
            with autocast(device, amp):
                rows = (call or model)(to_float(images, device))
            batches.append((index, rows))  # fetching the rows from a GPU here would wait for it
            bar.update(min(len(images) * WORLD_SIZE, bar.total - bar.n))
            if bar.disable and lines.due(len(batches)):
                lines.printed()
                print(f"evaluated {len(batches)} of {len(loader)} batches")
    own_rows = [(index.numpy(), rows.cpu().double().numpy()) for index, rows in batches]
    all_rows = list(itertools.chain.from_iterable(gather(own_rows)))
    outputs = np.full((len(loader.dataset), *all_rows[0][1].shape[1:]), np.nan)
    for index, rows in all_rows:
        outputs[index] = rows
    return outputs


def with_tta(forward: Callable[[Tensor], Tensor], tta: str) -> Callable[[Tensor], Tensor]:
    """Return a function of images (B, 3, S, S); "flip" averages over images and their mirror images."""
    return (lambda images: (forward(images) + forward(images.flip(3))) / 2) if tta == "flip" else forward


def logit_terms(model: Network, images: Tensor, temperatures: list) -> Tensor:
    """Return the terms of the logits for any λ: the mean scores, and the attended scores for each T.

    images: (B, 3, S, S). temperatures: each replaces that of all heads; None keeps the heads' own.
    Returns (B, 1 + len(temperatures), C), summed over the heads; logits are the first + λ · another. Neither
    λ nor T changes a score map, so no training is needed (paper, Fig. 1).
    """
    maps = [(scores.flatten(2), T) for scores, T in model.classifier.score_maps(model.features(images))]
    mean = sum(scores.mean(dim=-1) for scores, _ in maps)
    attended = (sum(attended_scores(s, own if T is None else T) for s, own in maps) for T in temperatures)
    return torch.stack([mean, *attended], dim=1)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return scores in float64, as in float32 every logit above 17 gives exactly 1."""
    return torch.from_numpy(logits).double().sigmoid().numpy()


def evaluate_model(model: nn.Module, loader: DataLoader, device: torch.device, amp: str = "off") -> Metrics:
    """Return the metrics of `evaluate` for a model on the loader's data set; UserError for NaN scores."""
    return evaluate_scores(sigmoid(compute_outputs(model, loader, device, amp)), loader.dataset.labels)


def evaluate_scores(scores: np.ndarray, labels: Labels, threshold: float | np.ndarray = 0.5) -> Metrics:
    """Return the metrics of `evaluate` for scores (N, C) and their labels; UserError for NaN scores."""
    positives, ignore, flag = labels.targets == 1, labels.targets == IGNORED, labels.unknown_is_negative
    with reporting_value_errors("the weights are damaged, or training needs a lower --lr"):
        return evaluate(scores, positives, ignore, threshold, flag)
