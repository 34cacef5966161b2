"""The chart of a file of metrics: the average precision of each class as a bar."""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.charts.figures import COLUMN_WIDTH, PALETTE, make_figure
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_results(path: Path) -> dict[str, float]:
    """Return the AP of each class from a file of val.py --out, NaN for a class without positives."""
    with reporting_errors(f"{path} must hold numbers under AP, by class, as a file of val.py --out does"):
        values = {name: math.nan if ap is None else float(ap) for name, ap in read_json(path)["AP"].items()}
    if all(math.isnan(ap) for ap in values.values()):
        raise UserError(f"{path}: no class has positives, so there is no AP to draw")
    return values


def draw_average_precisions(title: str, values: dict[str, float]) -> Figure:
    """Draw the AP of each class as a bar, the best on top, and their mean; values: NaN without positives."""
    names = sorted(values, key=lambda name: np.nan_to_num(values[name], nan=-1))
    percent = [100 * values[name] for name in names]
    numbers = ["no positives" if math.isnan(value) else f"{value:.1f}" for value in percent]
    labels = [f"{name}   {number}" for name, number in zip(names, numbers)]
    mean = float(np.nanmean(percent))
    figure = make_figure(COLUMN_WIDTH, 1 + 0.15 * len(names))
    axis = figure.subplots()
    axis.barh(labels, percent, color=PALETTE[0])
    axis.axvline(mean, color=PALETTE[1], linestyle="--", linewidth=1, label=f"mAP {mean:.1f} %")
    axis.set(title=title, xlabel="average precision (%)", xlim=(0, 100), ylim=(-0.7, len(names) - 0.3))
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center")
    return figure
