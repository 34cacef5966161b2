"""Evaluate many λ and temperatures from one pass over the images, since score maps depend on neither."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.csra import attended_scores
from pipeline.network import Network
from utils.data.labels import Labels
from utils.inference.network_metrics import evaluate_scores
from utils.inference.outputs import BatchLoader, compute_outputs, sigmoid, with_tta
from utils.metrics.multilabel import Metrics

Temperature = float | None  # of all heads; None: each head's own, as trained


class SweepAxes(NamedTuple):
    """The values of λ and T to evaluate with each other."""

    lams: list[float]
    temperatures: list[Temperature]


class LogitTerms(NamedTuple):
    """The terms of the logits (N, C): the mean scores, and by temperature the attended scores."""

    mean: np.ndarray
    attended: dict[Temperature, np.ndarray]

    def scores(self, lam: float, T: Temperature) -> "TermScores":
        """Return the scores for a λ and a temperature."""
        return TermScores(self.mean, self.attended[T], lam)


class TermScores(NamedTuple):
    """The scores for a λ, from the terms of their logits (N, C): the mean scores and the attended ones."""

    mean: np.ndarray
    attended: np.ndarray
    lam: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def of_images(self, images: slice) -> np.ndarray:
        return sigmoid(self.logits(self.mean[images], self.attended[images]))

    def of_classes(self, classes: slice) -> np.ndarray:
        terms = (np.ascontiguousarray(term[:, classes].T) for term in (self.mean, self.attended))
        return sigmoid(self.logits(*terms))

    def logits(self, mean: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Return logits in float64 (Eq. 7)."""
        return np.multiply(self.lam, attended, dtype=np.float64) + mean


class SweepPoint(NamedTuple):
    """The metrics for one λ and one temperature."""

    lam: float
    T: Temperature
    metrics: Metrics


def compute_terms(
    network: Network,
    loader: BatchLoader,
    device: torch.device,
    temperatures: list[Temperature],
    amp: str = "off",
    tta: str = "off",
) -> LogitTerms:
    """Return the terms of a network's logits for the loader's data set; row i belongs to sample i.

    temperatures: those to have attended scores for; the heads' own, None, is always among the results.
    """
    wanted = list(dict.fromkeys([None, *temperatures]))
    forward = with_tta(functools.partial(logit_terms, network, temperatures=wanted), tta)
    outputs = compute_outputs(network, loader, device, amp, forward)
    mean, *attended = np.moveaxis(outputs, 1, 0)
    return LogitTerms(mean, dict(zip(wanted, attended)))


def logit_terms(network: Network, images: Tensor, temperatures: list[Temperature]) -> Tensor:
    """Return the terms of the logits for any λ: the mean scores, and the attended scores for each T.

    images: (B, 3, S, S). temperatures: each replaces that of all heads; None keeps the heads' own.
    Returns (B, 1 + len(temperatures), C), summed over the heads; logits are the first + λ · another. Neither
    λ nor T changes a score map, so no training is needed (paper, Fig. 1).
    """
    maps = network.classifier.score_maps(network.features(images))
    mean = add_up([scores.flatten(2).mean(dim=-1) for scores, _ in maps])
    attended = []
    for T in temperatures:
        heads = [attended_scores(scores.flatten(2), own if T is None else T) for scores, own in maps]
        attended.append(add_up(heads))
    return torch.stack([mean, *attended], dim=1)


def add_up(tensors: list[Tensor]) -> Tensor:
    """Return the sum of one or more tensors."""
    return sum(tensors[1:], start=tensors[0])


def sweep(terms: LogitTerms, labels: Labels, axes: SweepAxes, thresholds: np.ndarray) -> list[SweepPoint]:
    """Return the metrics for each λ and each temperature."""
    points = []
    for T in axes.temperatures:
        for lam in axes.lams:
            metrics = evaluate_scores(terms.scores(lam, T), labels, thresholds)
            points.append(SweepPoint(lam, T, metrics))
    return points
