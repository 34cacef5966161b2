"""Evaluate many λ and temperatures from one pass over the images, since score maps depend on neither."""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.csra import attended_scores
from pipeline.network import Network
from utils.data.label_files import Labels
from utils.inference.outputs import BatchLoader, compute_outputs, evaluate_scores, sigmoid, with_tta
from utils.metrics.multilabel import Metrics
from utils.metrics.report import by_class
from utils.runtime.cli import UserError, number

Temperature = float | None  # of all heads; None: each head's own, as trained


class Axis(NamedTuple):
    """The values of "lam" or of "T" to evaluate."""

    name: str
    values: list[Temperature]


class SweepAxes(NamedTuple):
    """The values of λ and T to evaluate with each other."""

    lams: list[float]
    temperatures: list[Temperature]


class LogitTerms(NamedTuple):
    """The terms of the logits (N, C): the mean scores, and by temperature the attended scores."""

    mean: np.ndarray
    attended: dict[Temperature, np.ndarray]

    def logits(self, lam: float, T: Temperature) -> np.ndarray:
        """Return the logits (N, C) for a λ and a temperature (Eq. 7)."""
        return self.mean + lam * self.attended[T]


class SweepPoint(NamedTuple):
    """The metrics for one λ and one temperature."""

    lam: float
    T: Temperature
    metrics: Metrics


def axis(text: str) -> Axis:
    """Parse lam=0:1:0.1 (from:to:step) or T=trained,1,inf (trained: None); an argparse type."""
    name, _, values = text.partition("=")
    num_colons = values.count(":")
    if name not in ("lam", "T") or num_colons not in (0, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: write lam=0:1:0.1 (from:to:step) or T=1,2,4,inf")
    parse = number(float, 0, low_allowed=name == "lam")
    if num_colons == 2:
        return Axis(name, parse_range(text, values, parse))
    words = {"trained": None, "inf": math.inf, "99": math.inf} if name == "T" else {}
    found = [words[word] if word in words else parse(word) for word in values.split(",")]
    return Axis(name, list(dict.fromkeys(found)))


def parse_range(text: str, values: str, parse: Callable[[str], float]) -> list[Temperature]:
    """Return the numbers of a range from:to:step, which is a part of the axis `text`."""
    start, stop, step = map(parse, values.split(":"))
    if step == 0 or not start <= stop <= start + 1000 * step:
        raise argparse.ArgumentTypeError(f"{text!r}: a range goes up, in at most 1000 steps")
    num_steps = int((stop - start) / step + 1e-9)
    return [round(start + i * step, 10) for i in range(num_steps + 1)]


def sweep_axes(given: list[Axis]) -> SweepAxes:
    """Combine the axes of --sweep; UserError unless λ is given once, and T at most once."""
    if sorted(axis.name for axis in given) not in (["lam"], ["T", "lam"]):
        raise UserError("--sweep takes lam= once, and T= at most once, as in --sweep lam=0:1:0.1 T=1,2,4,inf")
    values = {axis.name: axis.values for axis in given}
    lams = [lam for lam in values["lam"] if lam is not None]
    return SweepAxes(lams, values.get("T", [None]))


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
            scores = sigmoid(terms.logits(lam, T))
            points.append(SweepPoint(lam, T, evaluate_scores(scores, labels, thresholds)))
    return points


def temperature_name(T: Temperature) -> str:
    """Return a temperature in words, as files of results hold it."""
    return "as trained" if T is None else f"{T:g}"


def sweep_results(points: list[SweepPoint], names: list[str]) -> list[dict[str, Any]]:
    """Return the points as val.py --out writes them; names: of the classes."""
    results = []
    for lam, T, metrics in points:
        results.append({"lam": lam, "T": temperature_name(T), **by_class(metrics, names)})
    return results


def format_sweep(points: list[SweepPoint]) -> str:
    """Format the mAP in %, with a row for each λ and a column for each temperature, and mark the best."""
    best = max(point.metrics["mAP"] for point in points)
    rows = {point.lam: f"{point.lam:8g}" for point in points}
    titles = {}
    for lam, T, metrics in points:
        mark = "*" if metrics["mAP"] == best else " "
        rows[lam] += f"{100 * metrics['mAP']:12.4f} {mark}"
        titles[T] = f"T {temperature_name(T)}".replace("inf", "∞")
    header = "  lambda" + "".join(f"{title:>14}" for title in titles.values())
    note = "* the best on these very images, so not a fair result: choose λ and T on other images"
    return "\n".join(["mAP in %", header, *rows.values(), note])
