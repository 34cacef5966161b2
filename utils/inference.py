"""Running a model: on which device, and from a loader's images to scores and metrics."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from utils.cli import UserError
from utils.datasets import IGNORED, DatasetSpec, to_float
from utils.evaluation import evaluate
from utils.progress import progress


def choose_device(name: str) -> torch.device:
    """Return the named device, or for auto the first of CUDA, MPS and CPU; UserError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in there if there[device])
        if name == "cpu":
            print("No GPU found: running on the CPU.")
    if not there[name]:
        raise UserError(f"--device {name}: PyTorch finds no such device here; use --device auto or cpu")
    return torch.device(name)


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader, device: torch.device, spec: DatasetSpec) -> np.ndarray:
    """Return the sigmoid scores (N, C) float64 of the loader's data set, row i being sample i of it.

    Rows go by the index that comes with each sample, so the loader's order does not matter; the row of a
    sample that never came is NaN.
    """
    model.eval()
    logits, indices = [], []
    with progress(len(loader.dataset), "evaluate") as bar:
        for images, _, index in loader:
            logits.append(model(to_float(images, device, spec)))
            indices.append(index)
            bar.update(len(images))
    # float64, in which confident scores stay distinct: in float32 every logit above 17 gives exactly 1.
    rows = torch.cat(logits).cpu().double().sigmoid().numpy()
    scores = np.full((len(loader.dataset), rows.shape[1]), np.nan)
    scores[torch.cat(indices).numpy()] = rows
    return scores


def evaluate_model(model: nn.Module, loader: DataLoader, device: torch.device, spec: DatasetSpec) -> dict:
    """Return the metrics of `evaluate` for the model on the loader's data set; UserError for NaN scores."""
    scores, targets = predict(model, loader, device, spec), loader.dataset.targets
    try:
        return evaluate(scores, targets == 1, ignore=targets == IGNORED)
    except ValueError as error:
        raise UserError(
            f"{error}: the weights are damaged, or training diverged and needs a lower --lr"
        ) from None
