"""Draw charts of training runs, of average precision by class, and of precision against recall.

python utils/plot.py RUN [RUN ...] --out DIR [--format pdf] [--names NAME ...]
"""

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.metrics.scores import read_scores
from utils.runtime.cli import Parser, UserError, given_path, reporting_errors, run_script
from utils.runtime.files import atomic_write, check_folder, read_json
from utils.training.log import read_log

# The palette of Okabe and Ito, which colour-blind people can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (8, 3)))
# As journals print figures: small type, thin axes, and text that stays text. Class names may contain $.
STYLE = {"font.size": 7, "axes.titlesize": 8, "axes.labelsize": 8, "axes.linewidth": 0.6, "savefig.dpi": 300}
STYLE |= {"axes.spines.right": False, "axes.spines.top": False, "legend.handlelength": 3, "pdf.fonttype": 42}
STYLE |= {"xtick.direction": "in", "ytick.direction": "in", "legend.frameon": False, "text.parse_math": False}
COLUMN, PAGE = 3.5, 7.2  # widths of figures, in inches


def main() -> None:
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
    runs, files = ([s for s in args.sources if s.is_dir() == is_run] for is_run in (True, False))
    figures, named = {}, dict(zip(args.sources, args.names or []))
    if runs:
        figures["curves"] = draw_curves({named.get(r, name): read_run(r) for name, r in short_names(runs)})
    for name, file in short_names(files):
        stem = name.replace("/", "_").removesuffix(file.suffix)
        title = named.get(file, stem)
        if file.suffix == ".json":
            figures[f"ap_{stem}"] = draw_average_precisions(title, read_results(file))
        elif file.suffix == ".npz":
            figures[f"pr_{stem}"] = draw_precision_recall(title, read_scores(file))
        else:
            raise UserError(f"{file} is not the folder of a run, a .json of val.py --out or a .npz of scores")
    for name, figure in figures.items():  # nothing is written if a source has an error
        path = args.out / f"{name}.{args.format}"
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=args.format)
        print(f"written to {path}")


def short_names(sources: list[Path]) -> list[tuple[str, Path]]:
    """Name each source by the last part of its path, or by its whole path if those are not distinct."""
    names = [source.resolve().name for source in sources]
    return list(zip(names if len(set(names)) == len(names) else map(str, sources), sources))


def read_run(folder: Path) -> np.ndarray:
    """Return the epochs, losses, mAP in % and learning rates of the backbone (4, N) in the log of a run."""
    rows = []
    for record in read_log(folder):
        with reporting_errors(f"{folder}/log.jsonl: epoch {record['epoch']} lacks train_loss, mAP or lr"):
            mAP = math.nan if record.get("mAP") is None else record["mAP"]  # None: no positives
            rate, *_ = record["lr"].values()
            rows.append(list(map(float, (record["epoch"], record["train_loss"], 100 * mAP, rate))))
    if not rows:
        raise UserError(f"{folder} holds no log.jsonl with an epoch: name the folder of a run")
    return np.transpose(rows)


def read_results(path: Path) -> dict[str, float]:
    """Return the AP of each class from a file of val.py --out, NaN for a class without positives."""
    with reporting_errors(f"{path} must hold numbers under AP, by class, as a file of val.py --out does"):
        values = {name: math.nan if ap is None else float(ap) for name, ap in read_json(path)["AP"].items()}
    if all(map(math.isnan, values.values())):
        raise UserError(f"{path}: no class has positives, so there is no AP to draw")
    return values


def make_figure(width: float, height: float, num_axes: int = 1):
    """Return an empty figure, its size in inches, and its axes; UserError if matplotlib is not installed."""
    with reporting_errors("charts need matplotlib: pip install matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, num_axes)


def line_styles(number: int) -> Iterator[dict]:
    """Yield a style for each of several lines: later ones are thinner and dashed, so that none is hidden."""
    widths = np.linspace(min(3, 0.7 + 0.5 * number), 1.2, number)
    for color, dashes, width in zip(itertools.cycle(PALETTE), itertools.cycle(DASHES), widths):
        line = {"color": color, "linestyle": dashes, "linewidth": width, "markersize": width + 1}
        yield line | {"clip_on": False}


def draw_curves(runs: dict[str, np.ndarray]):
    """Draw loss, mAP and the backbone's learning rate by epoch, with a line for the log of each run."""
    figure, axes = make_figure(PAGE, 2.4, num_axes=3)
    titles = ("training loss", "mAP (%)", "learning rate (backbone)")
    for column, (axis, title) in enumerate(zip(axes, titles), start=1):
        for (name, values), style in zip(runs.items(), line_styles(len(runs))):
            axis.plot(values[0], values[column], label=name, marker="o", **style)
        axis.set(ylabel=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[1].set_ylim(top=min(100, axes[1].get_ylim()[1]))
    if 0 < 10 * axes[2].dataLim.y0 <= axes[2].dataLim.y1:
        axes[2].set_yscale("log")
        axes[2].yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
    return figure


def draw_average_precisions(title: str, values: dict[str, float]):
    """Draw the AP of each class as a bar, the best on top, and their mean; NaN: no positives."""
    names = sorted(values, key=lambda name: np.nan_to_num(values[name], nan=-1))
    percent = [100 * values[name] for name in names]
    mean = np.nanmean(percent)
    numbers = ["no positives" if math.isnan(value) else f"{value:.1f}" for value in percent]
    figure, axis = make_figure(COLUMN, 1 + 0.15 * len(names))
    axis.barh([f"{name}   {number}" for name, number in zip(names, numbers)], percent, color=PALETTE[0])
    axis.axvline(mean, color=PALETTE[1], linestyle="--", linewidth=1, label=f"mAP {mean:.1f} %")
    axis.set(title=title, xlabel="average precision (%)", xlim=(0, 100), ylim=(-0.7, len(names) - 0.3))
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center")
    return figure


def draw_precision_recall(title: str, arrays: dict):
    """Draw precision against recall of all labels together and of single classes: all, or best and worst."""
    scores, targets, counted = arrays["scores"], arrays["targets"] == 1, ~arrays["ignore"]
    columns, legend = zip(arrays["names"], scores.T, targets.T, counted.T), "AP (%)"
    curves = [(name, *precision_recall(s[c], t[c])) for name, s, t, c in columns if (t & c).any()]
    if not curves:
        raise UserError("no class has a positive: there is no precision to draw")
    curves.sort(key=lambda curve: -curve[3])
    if len(curves) > 8:  # more curves on one chart are hard to tell apart
        legend = f"AP (%): best and worst of {len(curves)}"
        curves = curves[:4] + curves[-4:]
    figure, axis = make_figure(1.4 * COLUMN, 0.8 * COLUMN)
    together = counted | arrays["unknown_is_negative"]
    recall, precision, _ = precision_recall(scores[together], (targets & counted)[together])
    axis.step(recall, precision, "k-", where="pre", label="all labels together", linewidth=2.5)
    for (name, recall, precision, ap), style in zip(curves, line_styles(len(curves))):
        axis.step(recall, precision, where="pre", label=f"{name} ({100 * ap:.1f})", **style)
    figure.legend(loc="outside right upper", title=legend)
    axis.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    return figure


def precision_recall(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return recall and precision (1 + K,) and the average precision; K: distinct scores down to recall 1."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are predicted together
    hits = np.cumsum(positives[order])[last]
    recall, precision = np.append(0, hits / positives.sum()), hits / (np.flatnonzero(last) + 1)
    end, ap = recall.searchsorted(1) + 1, float((np.diff(recall) * precision).sum())
    return recall[:end], np.append(precision[0], precision)[:end], ap


if __name__ == "__main__":
    run_script(main)
