"""The metrics of a network's outputs on a data set."""

import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline.folding import folded
from pipeline.network import Network
from utils.data.labels import Labels
from utils.inference.outputs import BatchLoader, compute_outputs, sigmoid
from utils.metrics.blocks import Scores, TargetLabels
from utils.metrics.multilabel import Metrics, check_no_nan, evaluate_blocks
from utils.runtime.errors import reporting_value_errors
from utils.runtime.progress import progress_bar

NUM_READINGS = 3  # of the scores: for NaN, for average precision, and for precision and recall


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


def evaluate_model(network: Network, loader: BatchLoader, device: torch.device, amp: str = "off") -> Metrics:
    """Return the metrics of `evaluate` for a network on the loader's data set; UserError for NaN scores.

    The network is left in eval mode. A folded copy of its present weights computes the scores.
    """
    logits = compute_outputs(folded(network.eval()), loader, device, amp)
    return evaluate_scores(LogitScores(logits), loader.dataset.labels)


def evaluate_scores(scores: Scores, labels: Labels, threshold: float | np.ndarray = 0.5) -> Metrics:
    """Return the metrics of `evaluate` for scores (N, C) and their labels; UserError for NaN scores."""
    num_scores = math.prod(scores.shape)
    with progress_bar(NUM_READINGS * num_scores, "metrics", unit="score", delay=1) as bar:
        watched = WatchedScores(scores, bar)
        causes = "the weights are damaged, training needs a lower --lr, or values overflow with --amp fp16"
        with reporting_value_errors(causes):
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
