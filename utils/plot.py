"""Draw charts of training runs, of average precision by class, and of precision against recall.

python utils/plot.py RUN [RUN ...] --out DIR [--format pdf] [--names NAME ...]
"""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import argparse
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils.metrics.multilabel import average_precision
from utils.metrics.score_files import SavedScores, read_scores
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import atomic_write, check_folder, check_replaceable, read_json
from utils.runtime.fonts import report_undrawable, split_by_font
from utils.runtime.script import run_script
from utils.training.log import read_log

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
MAX_CURVES = 8  # more curves on one chart are hard to tell apart


class RunLog(NamedTuple):
    """A training run by epoch: arrays (N,) of the epochs and what was logged at each."""

    epochs: np.ndarray
    losses: np.ndarray
    mean_aps: np.ndarray  # in %; NaN if no class has positives
    rates: np.ndarray  # of the backbone


class Curve(NamedTuple):
    """Precision against recall of a class, arrays (1 + K,), and its average precision."""

    name: str
    recall: np.ndarray
    precision: np.ndarray
    average: float


class Chart(NamedTuple):
    """A chart to draw, and the names that it shows."""

    names: list[str]
    draw: Callable[[], Figure]


def main() -> None:
    args = parse_args()
    charts = read_sources(args.sources, args.names or [])
    use_fonts_for(list(itertools.chain.from_iterable(chart.names for chart in charts.values())))
    figures = {args.out / f"{name}.{args.format}": chart.draw() for name, chart in charts.items()}
    for path in figures:  # nothing is written if a source or a path has an error
        check_replaceable(path, "--out:", is_chart, "utils/plot.py")
    for path, figure in figures.items():
        write_chart(path, figure)
        print(f"written to {path}")


def parse_args() -> argparse.Namespace:
    parser = Parser("Draw charts of training runs and results.")
    kinds = "folders of runs, for one chart; files of val.py --out (.json) or --save_scores (.npz)"
    parser.add_argument("sources", type=given_path, nargs="+", metavar="RUN", help=kinds)
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder for the charts")
    parser.add_argument("--format", choices=["png", "pdf", "svg"], default="png", help="of the charts")
    names_help = "a label for each RUN, in their order [default: its file name]"
    parser.add_argument("--names", nargs="+", metavar="NAME", help=names_help)
    args = parser.parse_args()
    check_folder(args.out, "--out")
    if args.names and not len(set(args.names)) == len(args.names) == len(args.sources):
        raise UserError(f"--names: give each of the {len(args.sources)} sources a name of its own")
    return args


def read_sources(sources: list[Path], labels: list[str]) -> dict[str, Chart]:
    """Return one chart for all runs and one for each file, by file name without its ending.

    labels: one for each source, or none.
    """
    label_of = dict(zip(sources, labels))
    folders = [source for source in sources if source.is_dir()]
    files = [source for source in sources if not source.is_dir()]
    charts = {}
    if folders:
        runs = {label_of.get(folder, name): read_run(folder) for name, folder in short_names(folders)}
        charts["curves"] = Chart([*runs], functools.partial(draw_curves, runs))
    for name, file in short_names(files):
        stem = name.replace("/", "_").removesuffix(file.suffix)
        title = label_of.get(file, stem)
        if file.suffix == ".json":
            results = read_results(file)
            draw = functools.partial(draw_average_precisions, title, results)
            charts[f"ap_{stem}"] = Chart([title, *results], draw)
        elif file.suffix == ".npz":
            saved = read_scores(file)
            draw = functools.partial(draw_precision_recall, title, saved)
            charts[f"pr_{stem}"] = Chart([title, *saved.names], draw)
        else:
            raise UserError(f"{file} is not the folder of a run, a .json of val.py --out or a .npz of scores")
    return charts


def short_names(sources: list[Path]) -> list[tuple[str, Path]]:
    """Name each source by the last part of its path, or by its whole path if those are not distinct."""
    names = [source.resolve().name for source in sources]
    if len(set(names)) < len(names):
        names = [str(source) for source in sources]
    return list(zip(names, sources))


def read_run(folder: Path) -> RunLog:
    """Read the log of a run; UserError if it holds no epoch, or an epoch lacks a number."""
    rows = []
    for record in read_log(folder):
        with reporting_errors(f"{folder}/log.jsonl: epoch {record['epoch']} lacks train_loss, mAP or lr"):
            mAP = record.get("mAP")
            percent = math.nan if mAP is None else 100 * mAP  # None: no positives
            backbone_rate, *_ = record["lr"].values()
            rows.append([float(record["epoch"]), float(record["train_loss"]), percent, float(backbone_rate)])
    if not rows:
        raise UserError(f"{folder} holds no log.jsonl with an epoch: name the folder of a run")
    return RunLog(*np.array(rows, float).T)


def read_results(path: Path) -> dict[str, float]:
    """Return the AP of each class from a file of val.py --out, NaN for a class without positives."""
    with reporting_errors(f"{path} must hold numbers under AP, by class, as a file of val.py --out does"):
        values = {name: math.nan if ap is None else float(ap) for name, ap in read_json(path)["AP"].items()}
    if all(math.isnan(ap) for ap in values.values()):
        raise UserError(f"{path}: no class has positives, so there is no AP to draw")
    return values


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


def draw_curves(runs: dict[str, RunLog]) -> Figure:
    """Draw loss, mAP and the backbone's learning rate by epoch, with a line for the log of each run."""
    figure = make_figure(PAGE_WIDTH, 2.4)
    loss_axis, mAP_axis, rate_axis = figure.subplots(1, 3)
    for (name, run), style in zip(runs.items(), line_styles(len(runs))):
        loss_axis.plot(run.epochs, run.losses, label=name, marker="o", **style)
        mAP_axis.plot(run.epochs, run.mean_aps, marker="o", **style)
        rate_axis.plot(run.epochs, run.rates, marker="o", **style)
    loss_axis.set_ylabel("training loss")
    mAP_axis.set_ylabel("mAP (%)")
    rate_axis.set_ylabel("learning rate (backbone)")
    for axis in (loss_axis, mAP_axis, rate_axis):
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    mAP_axis.set_ylim(top=min(100, mAP_axis.get_ylim()[1]))
    lowest, highest = rate_axis.dataLim.intervaly
    if 0 < 10 * lowest <= highest:
        rate_axis.set_yscale("log")
        rate_axis.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    lines, labels = loss_axis.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=min(4, len(runs)))
    return figure


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


def draw_precision_recall(title: str, saved: SavedScores) -> Figure:
    """Draw precision against recall, of all labels together and of each class, or the best and worst few."""
    curves = class_curves(saved)
    if not curves:
        raise UserError("no class has a positive: there is no precision to draw")
    legend = "AP (%)"
    if len(curves) > MAX_CURVES:
        legend = f"AP (%): best and worst of {len(curves)}"
        curves = curves[: MAX_CURVES // 2] + curves[-MAX_CURVES // 2 :]

    recall, precision = precision_recall(saved.scores[saved.counted], saved.positives[saved.counted])
    together = Curve("all labels together", recall, precision, math.nan)
    left, bottom = lowest_of_interest([together, *curves])

    figure = make_figure(1.4 * COLUMN_WIDTH, 0.8 * COLUMN_WIDTH)
    axis = figure.subplots()
    styles = [{"color": "k", "linewidth": 2.5}, *line_styles(len(curves))]
    for curve, style in zip([together, *curves], styles):
        label = curve.name if curve is together else f"{curve.name} ({100 * curve.average:.1f})"
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


def class_curves(saved: SavedScores) -> list[Curve]:
    """Return the curve of each class that has positives, the best first."""
    curves = []
    columns = zip(saved.names, saved.scores.T, saved.positives.T, ~saved.ignore.T)
    for name, scores, positives, known in columns:
        if positives.any():
            recall, precision = precision_recall(scores[known], positives[known])
            curves.append(Curve(name, recall, precision, average_precision(scores, positives, known)))
    return sorted(curves, key=lambda curve: -curve.average)


def precision_recall(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision (1 + K,) from arrays (N,): at recall 0, then at each of K distinct scores.

    The scores go from the highest down to the first that reaches recall 1. Equal scores are predicted
    together.
    """
    order = np.argsort(-scores, kind="stable")
    ranked_scores = scores[order]
    num_correct = np.cumsum(positives[order])
    num_predicted = np.arange(1, len(scores) + 1)
    is_last_of_equals = np.append(ranked_scores[1:] != ranked_scores[:-1], True)
    recall = num_correct[is_last_of_equals] / positives.sum()
    precision = num_correct[is_last_of_equals] / num_predicted[is_last_of_equals]
    end = recall.searchsorted(1) + 1
    return np.append(0, recall[:end]), np.append(precision[0], precision[:end])


if __name__ == "__main__":
    run_script(main)
