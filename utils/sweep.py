"""Evaluating many λ and temperatures from one pass over the images: neither changes a score map."""

import argparse
import math

import numpy as np

from utils.inference import evaluate_scores, sigmoid
from utils.runtime.cli import number


def axis(text: str) -> tuple[str, list[float]]:
    """Parse lam=0:1:0.1 (from, to, step) or T=1,2,4,inf; an argparse type."""
    name, _, values = text.partition("=")
    if name not in ("lam", "T"):
        raise argparse.ArgumentTypeError(f"{text!r}: write lam=0:1:0.1, or T=1,2,4,inf")
    low, allowed = (0, True) if name == "lam" else (0, False)
    parse = number(float, low, allowed)
    if ":" not in values:
        found = (math.inf if v in ("inf", "99") and name == "T" else parse(v) for v in values.split(","))
        return name, list(dict.fromkeys(found))
    bounds = values.split(":")
    if len(bounds) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: a range is from:to:step, as in lam=0:1:0.1")
    start, stop, step = parse(bounds[0]), parse(bounds[1]), number(float, 0, low_allowed=False)(bounds[2])
    if not start <= stop <= start + 1000 * step:
        raise argparse.ArgumentTypeError(f"{text!r}: a range goes up, in at most 1000 steps")
    return name, [round(start + i * step, 10) for i in range(int((stop - start) / step + 1e-9) + 1)]


def sweep(terms: np.ndarray, targets: np.ndarray, lams: list[float], temperatures: list) -> list[dict]:
    """Return the metrics, beside `lam` and `T`, for each λ and temperature (None: as trained).

    terms: (N, 1 + T, C), the mean scores and the attended ones of each temperature. targets: (N, C).
    """
    return [
        {"lam": lam, "T": "as trained" if T is None else f"{T:g}"}
        | evaluate_scores(sigmoid(terms[:, 0] + lam * terms[:, 1 + i]), targets)
        for i, T in enumerate(temperatures)
        for lam in lams
    ]


def format_sweep(results: list[dict]) -> str:
    """Format the mAP in %, a row for each λ, a column for each temperature, the best one marked."""
    best = max(results, key=lambda result: result["mAP"])
    temperatures = list(dict.fromkeys(result["T"] for result in results))
    titles = (f"T {T}".replace("inf", "∞") for T in temperatures)
    lines = ["mAP in %", "  lambda" + "".join(f"{title:>14}" for title in titles)]
    for lam in dict.fromkeys(result["lam"] for result in results):
        row = [result for result in results if result["lam"] == lam]
        cells = (f"{100 * r['mAP']:12.4f} {'*' if r is best else ' '}" for r in row)
        lines.append(f"{lam:8g}" + "".join(cells))
    lines.append("* the best on these images. On a test set that is no fair result: choose on others.")
    return "\n".join(lines)
