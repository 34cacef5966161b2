"""Evaluate many λ and temperatures from one pass over the images, since score maps depend on neither."""

import argparse
import math

import numpy as np

from utils.data.label_files import Labels
from utils.inference.outputs import evaluate_scores, sigmoid
from utils.runtime.cli import number


def axis(text: str) -> tuple[str, list[float | None]]:
    """Parse lam=0:1:0.1 (from:to:step) or T=trained,1,inf (trained: None); an argparse type."""
    name, _, values = text.partition("=")
    if name not in ("lam", "T") or values.count(":") not in (0, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: write lam=0:1:0.1 (from:to:step) or T=1,2,4,inf")
    parse = number(float, 0, low_allowed=name == "lam")
    if values.count(":") == 2:
        start, stop, step = map(parse, values.split(":"))
        if not (step and start <= stop <= start + 1000 * step):
            raise argparse.ArgumentTypeError(f"{text!r}: a range goes up, in at most 1000 steps")
        return name, [round(start + i * step, 10) for i in range(int((stop - start) / step + 1e-9) + 1)]
    words = {"trained": None, "inf": math.inf, "99": math.inf} if name == "T" else {}
    numbers = (words[v] if v in words else parse(v) for v in values.split(","))
    return name, list(dict.fromkeys(numbers))


def sweep(terms: np.ndarray, labels: Labels, lams: list, temperatures: list, thresholds: np.ndarray) -> list:
    """Return the metrics for each λ and each T (None: as trained); terms are those of logit_terms."""
    return [
        {"lam": lam, "T": "as trained" if T is None else f"{T:g}"}
        | evaluate_scores(sigmoid(terms[:, 0] + lam * terms[:, i]), labels, thresholds)
        for i, T in enumerate(temperatures, start=1)
        for lam in lams
    ]


def format_sweep(results: list[dict]) -> str:
    """Format the mAP in %, with a row for each λ and a column for each temperature, and mark the best."""
    best = max(result["mAP"] for result in results)
    titles = dict.fromkeys(f"T {result['T']}".replace("inf", "∞") for result in results)
    rows = {result["lam"]: f"{result['lam']:8g}" for result in results}
    for result in results:
        rows[result["lam"]] += f"{100 * result['mAP']:12.4f} {'*' if result['mAP'] == best else ' '}"
    header = "  lambda" + "".join(f"{title:>14}" for title in titles)
    note = "* the best on these very images, so not a fair result: choose λ and T on other images"
    return "\n".join(["mAP in %", header, *rows.values(), note])
