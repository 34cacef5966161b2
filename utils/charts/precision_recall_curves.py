"""The chart of a file of scores: precision against recall, by class and of all labels together."""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import math
from typing import TYPE_CHECKING

import numpy as np

from utils.charts.figures import COLUMN_WIDTH, line_styles, make_figure
from utils.metrics.precision_recall import Curve, class_curves, overall_curve
from utils.metrics.score_files import SavedScores
from utils.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 8  # more curves on one chart are hard to tell apart


def draw_precision_recall(title: str, saved: SavedScores) -> Figure:
    """Draw precision against recall, of all labels together and of each class, or the best and worst few."""
    curves = class_curves(saved)
    if not curves:
        raise UserError("no class has a positive: there is no precision to draw")
    legend = "AP (%)"
    if len(curves) > MAX_CURVES:
        legend = f"AP (%): best and worst of {len(curves)}"
        curves = curves[: MAX_CURVES // 2] + curves[-MAX_CURVES // 2 :]

    together = overall_curve(saved)
    left, bottom = lowest_of_interest([together, *curves])

    figure = make_figure(1.4 * COLUMN_WIDTH, 0.8 * COLUMN_WIDTH)
    axis = figure.subplots()
    styles = [{"color": "k", "linewidth": 2.5}, *line_styles(len(curves))]
    for curve, style in zip([together, *curves], styles):
        label = curve.name if curve is together else f"{curve.name} ({100 * curve.average_precision:.1f})"
        axis.step(np.maximum(curve.recall, left), curve.precision, where="pre", label=label, **style)
    figure.legend(loc="outside right upper", title=legend)
    axis.set(title=title, xlabel="recall", ylabel="precision", xlim=(left, 1), ylim=(bottom, 1))
    return figure


def lowest_of_interest(curves: list[Curve]) -> tuple[float, float]:
    """Return the recall and the precision at which the axes start, in tenths.

    Below that recall, the precision of all curves is 0.99 or more; no curve goes below that precision.
    """
    bottom = min(float(curve.precision.min()) for curve in curves)
    falls = []  # the recall at which each curve falls, if it does
    for curve in curves:
        is_low = curve.precision < 0.99
        if is_low.any():
            falls.append(float(curve.recall[max(0, int(is_low.argmax()) - 1)]))
    left = min(falls, default=0.0)
    return math.floor(10 * min(left, 0.9)) / 10, math.floor(10 * min(bottom, 0.9)) / 10
