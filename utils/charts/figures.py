"""Figures as journals print them: their style, their fonts and their files."""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.runtime.errors import reporting_errors
from utils.runtime.files import atomic_write
from utils.runtime.fonts import report_undrawable, split_by_font

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind people can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (8, 3)))
# As journals print figures: small type, thin axes, and text that stays text.
STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "legend.handlelength": 3,
    "legend.frameon": False,
    "text.parse_math": False,  # class names may contain $
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
}
COLUMN_WIDTH = 3.5  # of a journal, in inches
PAGE_WIDTH = 7.2
MADE_BY = "CSRA utils/plot.py"
NEEDS_MATPLOTLIB = "charts need matplotlib: pip install matplotlib"


def use_fonts_for(names: list[str]) -> None:
    """Let matplotlib draw names in any script that a font of this system has; report the others."""
    with reporting_errors(NEEDS_MATPLOTLIB):
        import matplotlib
        from matplotlib import font_manager
    own = font_manager.findfont("DejaVu Sans")
    families = ["sans-serif"]
    for file in dict.fromkeys(run.file for name in names for run in split_by_font(name, own)):
        if file != own:
            font_manager.fontManager.addfont(file)
            families.append(font_manager.FontProperties(fname=file).get_name())
    matplotlib.rcParams["font.family"] = families
    report_undrawable(names, own)


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure, its size in inches; UserError if matplotlib is not installed."""
    with reporting_errors(NEEDS_MATPLOTLIB):
        import matplotlib
        from matplotlib.figure import Figure
    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def write_chart(path: Path, figure: Figure, dpi: float | None = None) -> None:
    """Write a figure in the format that the name ends with, with a mark that this project made it."""
    key = "Software" if path.suffix == ".png" else "Creator"
    # matplotlib warns of each character that no font has; use_fonts_for has named them.
    with atomic_write(path, "wb") as file, warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(file, format=path.suffix[1:], dpi=dpi, metadata={key: MADE_BY})


def is_chart(path: Path) -> bool:
    """Return whether `write_chart` wrote a file."""
    return MADE_BY.encode() in path.read_bytes()


def line_styles(number: int) -> Iterator[dict[str, Any]]:
    """Yield a style for each line; later lines are thinner and dashed, so that none is hidden."""
    widths = np.linspace(min(3, 0.7 + 0.5 * number), 1.2, number)
    for color, dashes, width in zip(itertools.cycle(PALETTE), itertools.cycle(DASHES), widths):
        yield {
            "color": color,
            "linestyle": dashes,
            "linewidth": width,
            "markersize": width + 1,
            "clip_on": False,
        }
