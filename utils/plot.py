"""Draw curves of training runs, average precisions by class, and precision against recall.

python utils/plot.py RUN [RUN ...] --out DIR
"""

import math
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # run as a script
from utils.evaluation import read_scores
from utils.run_folder import read_log
from utils.runtime.cli import Parser, UserError, given_path, run
from utils.runtime.files import check_folder, read_json, whole_file

# Okabe and Ito's palette, whose colours the colour-blind tell apart; beyond it, other dashes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
MOST_CURVES = 8  # precision-recall curves of single classes that one can still tell apart


def main() -> None:
    parser = Parser(description="Draw charts of training runs and results, as PNG files.")
    parser.add_argument(
        "sources",
        type=given_path,
        nargs="+",
        metavar="RUN",
        help="folders of runs, drawn on one chart; files of val.py --out (.json) or --save_scores (.npz)",
    )
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder of the charts")
    args = parser.parse_args()
    load_matplotlib()
    check_folder(args.out, "--out")
    charts, runs = {}, [source for source in args.sources if source.is_dir()]
    if runs:
        logs = [(name, read_run(run)) for name, run in short_names(runs).items()]
        charts["curves"] = (draw_curves, (logs,))
    for name, source in short_names([source for source in args.sources if source not in runs]).items():
        title = name.replace("/", "_").removesuffix(source.suffix)
        if source.suffix == ".json":
            charts[f"ap_{title}"] = (draw_average_precisions, (title, read_results(source)))
        elif source.suffix == ".npz":
            charts[f"pr_{title}"] = (draw_precision_recall, (title, read_scores(source)))
        else:
            raise UserError(
                f"{source} is no folder of a run, no .json of val.py --out and no .npz of its scores"
            )
    figures = {name: draw(*content) for name, (draw, content) in charts.items()}
    for name, figure in figures.items():
        with whole_file(args.out / f"{name}.png", "wb") as file:
            figure.savefig(file, format="png", dpi=120)
        print(f"written to {args.out / name}.png")


def load_matplotlib():
    """Return matplotlib's pyplot, set to draw to files; UserError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("charts need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a class may be called $
    import matplotlib.pyplot as plt

    plt.rcParams |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    return plt


def short_names(sources: list[Path]) -> dict[str, Path]:
    """Name runs and files by the last part of their paths, or by the whole where those are not distinct."""
    names = [source.resolve().name for source in sources]
    return dict(zip(names if len(set(names)) == len(names) else map(str, sources), sources))


def read_run(folder: Path) -> list[dict]:
    """Return the log of a run; UserError where there is none, or it lacks what the curves show."""
    records = read_log(folder)
    if not records:
        raise UserError(f"{folder} holds no log.jsonl: it is no folder of a run, or of one without an epoch")
    for record in records:
        rates = record.get("lr")
        values = [record.get("train_loss"), *(rates.values() if isinstance(rates, dict) else [None])]
        if record.setdefault("mAP", None) is None:  # no class of the test images has a positive
            record["mAP"] = math.nan
        if len(values) < 2 or not all(isinstance(value, int | float) for value in [*values, record["mAP"]]):
            raise UserError(f"{folder}/log.jsonl: epoch {record['epoch']} lacks train_loss, mAP or lr")
    return records


def read_results(path: Path) -> dict[str, float]:
    """Return the AP of each class, None where it has no positives, from a file of val.py --out."""
    results = read_json(path)
    values = results.get("AP") if isinstance(results, dict) else None
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} holds no AP by class: it must be a file of val.py --out")
    known = [value for value in values.values() if value is not None]
    if not known or not all(isinstance(value, int | float) for value in known):
        raise UserError(f"{path}: its AP are no numbers")
    return values


def style(index: int) -> dict:
    """Return the look of the n-th line of a chart."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[index // len(PALETTE) % len(DASHES)],
        "linewidth": 1.8,
    }


def draw_curves(runs: list[tuple[str, list[dict]]]):
    """Draw loss, mAP and the backbone's learning rate by epoch, a line for each run."""
    plt = load_matplotlib()
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for index, (name, records) in enumerate(runs):
        epochs = [record["epoch"] for record in records]
        rates = [next(iter(record["lr"].values())) for record in records]
        curves = ([r["train_loss"] for r in records], [100 * r["mAP"] for r in records], rates)
        for axis, values in zip(axes, curves):
            axis.plot(epochs, values, label=name, marker="o", markersize=3.5, **style(index))
    for axis, title in zip(
        axes, ("training loss", "mAP on the test images, %", "learning rate of the backbone")
    ):
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    rates = [next(iter(record["lr"].values())) for _, records in runs for record in records]
    if 0 < 10 * min(rates) <= max(rates):
        axes[2].set_yscale("log")
        axes[2].yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
    return figure


def draw_average_precisions(title: str, values: dict[str, float | None]):
    """Draw the AP of each class as a bar, the best on top, and their mean."""
    plt = load_matplotlib()
    without = [name for name in values if values[name] is None]
    names = sorted(values.keys() - without, key=values.get)
    figure, axis = plt.subplots(figsize=(7, 1.4 + 0.26 * len(names)), layout="constrained")
    percent = [100 * values[name] for name in names]
    bars = axis.barh(names, percent, color=PALETTE[0])
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    mean = float(np.mean(percent))
    axis.axvline(mean, color=PALETTE[1], linestyle="--", label=f"mAP {mean:.2f} %")
    axis.set_xlim(0, 108)
    axis.set_ylim(-0.7, len(names) - 0.3)
    note = f"\nwithout positives: {', '.join(without)}" if without else ""
    axis.set_xlabel(f"average precision, %{note}")
    axis.set_title(title)
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center")
    return figure


def draw_precision_recall(title: str, arrays: dict):
    """Draw precision against recall: all labels pooled, and the classes, or the best and worst of many."""
    plt = load_matplotlib()
    scores, targets, counted = arrays["scores"], arrays["targets"] == 1, ~arrays["ignore"]
    classes = [c for c in range(scores.shape[1]) if (targets[:, c] & counted[:, c]).any()]
    if not classes:
        raise UserError("no class has a positive: there is no precision to draw")
    curves = {c: precision_recall(scores[counted[:, c], c], targets[counted[:, c], c]) for c in classes}
    order = sorted(classes, key=lambda c: -area(curves[c]))
    shown = order if len(order) <= MOST_CURVES else order[: MOST_CURVES // 2] + order[-MOST_CURVES // 2 :]
    figure, axis = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for index, c in enumerate(shown):
        label = f"{arrays['names'][c]} ({100 * area(curves[c]):.1f})"
        draw_steps(axis, curves[c], label=label, **style(index))
    pooled = precision_recall(scores[counted], targets[counted])
    draw_steps(axis, pooled, label="all labels together", color="black", linewidth=2.5)
    legend = "AP, %" if len(shown) == len(order) else f"AP, %: best and worst of {len(order)}"
    figure.legend(loc="outside right upper", title=legend, fontsize=9)
    axis.set_title(title)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    return figure


def draw_steps(axis, curve: tuple[np.ndarray, np.ndarray], **look) -> None:
    """Draw precision against recall: the precision of a recall holds on the way to it, from 0 on."""
    recall, precision = curve
    axis.step(np.append(0, recall), np.append(precision[0], precision), where="pre", **look)


def precision_recall(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision (K,) at each distinct score, from the highest on; there are positives."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are predicted together
    hits = np.cumsum(positives[order])[last]
    return hits / positives.sum(), hits / (np.flatnonzero(last) + 1)


def area(curve: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the average precision of a curve: precision times the step in recall, summed."""
    recall, precision = curve
    return float((np.diff(recall, prepend=0) * precision).sum())


if __name__ == "__main__":
    run(main)
