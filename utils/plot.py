"""Draw charts of training runs, of average precision by class, and of precision against recall.

python utils/plot.py RUN [RUN ...] --out DIR
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.log import read_log
from utils.runtime.cli import Parser, UserError, given_path, reporting_errors, run_script
from utils.runtime.files import atomic_write, check_folder, read_json
from utils.scores import read_scores

# The palette of Okabe and Ito, which colour-blind people can tell apart. After six lines the dashes change.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE = {"axes.grid": True, "axes.spines.right": False, "axes.spines.top": False, "grid.alpha": 0.3}
STYLE |= {"lines.linewidth": 1.8, "text.parse_math": False}  # class names may contain $


def main() -> None:
    parser = Parser("Draw charts of training runs and results as PNG files.")
    kinds = "folders of runs, for one chart; files of val.py --out (.json) or --save_scores (.npz)"
    parser.add_argument("sources", type=given_path, nargs="+", metavar="RUN", help=kinds)
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder for the charts")
    args = parser.parse_args()
    check_folder(args.out, "--out")
    figures, runs = {}, [source for source in args.sources if source.is_dir()]
    if runs:
        figures["curves"] = draw_curves({name: read_run(run) for name, run in short_names(runs).items()})
    for name, file in short_names([source for source in args.sources if source not in runs]).items():
        title = name.replace("/", "_").removesuffix(file.suffix)
        if file.suffix == ".json":
            figures[f"ap_{title}"] = draw_average_precisions(title, read_results(file))
        elif file.suffix == ".npz":
            figures[f"pr_{title}"] = draw_precision_recall(title, read_scores(file))
        else:
            raise UserError(f"{file} is not the folder of a run, a .json of val.py --out or a .npz of scores")
    for name, figure in figures.items():  # nothing is written if a source has an error
        with atomic_write(args.out / f"{name}.png", "wb") as file:
            figure.savefig(file, format="png", dpi=120)
        print(f"written to {args.out / name}.png")


def short_names(sources: list[Path]) -> dict[str, Path]:
    """Name each source by the last part of its path, or by its whole path if those are not distinct."""
    names = [source.resolve().name for source in sources]
    return dict(zip(names if len(set(names)) == len(names) else map(str, sources), sources))


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


def read_results(path: Path) -> dict[str, float | None]:
    """Return the AP of each class from a file of val.py --out, None for a class without positives."""
    with reporting_errors(f"{path} must hold numbers under AP, by class, as a file of val.py --out does"):
        values = {name: ap if ap is None else float(ap) for name, ap in read_json(path)["AP"].items()}
        max(ap for ap in values.values() if ap is not None)  # raises ValueError if there is none
    return values


def make_figure(width: float, height: float, num_axes: int = 1):
    """Return an empty figure, its size in inches, and its axes; UserError if matplotlib is not installed."""
    with reporting_errors("charts need matplotlib: pip install matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure
    styles = matplotlib.cycler(linestyle=["-", "--", ":", "-."]) * matplotlib.cycler(color=PALETTE)
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": styles})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, num_axes)


def draw_curves(runs: dict[str, np.ndarray]):
    """Draw loss, mAP and the backbone's learning rate by epoch, with a line for the log of each run."""
    figure, axes = make_figure(13, 4.2, num_axes=3)
    titles = ("training loss", "mAP on the test images, %", "learning rate of the backbone")
    for column, (axis, title) in enumerate(zip(axes, titles), start=1):
        for name, values in runs.items():
            axis.plot(values[0], values[column], label=name, marker="o", markersize=3.5)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if 0 < 10 * axes[2].dataLim.y0 <= axes[2].dataLim.y1:
        axes[2].set_yscale("log")
        axes[2].yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
    return figure


def draw_average_precisions(title: str, values: dict[str, float | None]):
    """Draw the AP of each class as a bar, the best on top, and their mean."""
    without = [name for name in values if values[name] is None]
    note = f"\nwithout positives: {', '.join(without)}" if without else ""
    names = sorted((name for name in values if values[name] is not None), key=values.get)
    percent = [100 * values[name] for name in names]
    mean = float(np.mean(percent))
    figure, axis = make_figure(7, 1.4 + 0.26 * len(names))
    axis.bar_label(axis.barh(names, percent, color=PALETTE[0]), fmt="%.1f", padding=3, fontsize=8)
    axis.axvline(mean, color=PALETTE[1], linestyle="--", label=f"mAP {mean:.2f} %")
    axis.set(xlim=(0, 108), ylim=(-0.7, len(names) - 0.3), xlabel=f"average precision, %{note}", title=title)
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center")
    return figure


def draw_precision_recall(title: str, arrays: dict):
    """Draw precision against recall of all labels together and of single classes: all, or best and worst."""
    scores, targets, counted = arrays["scores"], arrays["targets"] == 1, ~arrays["ignore"]
    columns, legend = zip(arrays["names"], scores.T, targets.T, counted.T), "AP, %"
    curves = [(name, *precision_recall(s[c], t[c])) for name, s, t, c in columns if (t & c).any()]
    if not curves:
        raise UserError("no class has a positive: there is no precision to draw")
    curves.sort(key=lambda curve: -curve[3])
    if len(curves) > 8:  # more curves on one chart are hard to tell apart
        legend = f"AP, %: best and worst of {len(curves)}"
        curves = curves[:4] + curves[-4:]
    figure, axis = make_figure(7.5, 5)
    for name, recall, precision, ap in curves:
        axis.step(recall, precision, where="pre", label=f"{name} ({100 * ap:.1f})")
    recall, precision, _ = precision_recall(scores[counted], targets[counted])
    axis.step(recall, precision, "k-", where="pre", label="all labels together", linewidth=2.5)
    figure.legend(loc="outside right upper", title=legend, fontsize=9)
    axis.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    return figure


def precision_recall(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return recall and precision (1 + K,), at recall 0 and K distinct scores, and the average precision."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are predicted together
    hits = np.cumsum(positives[order])[last]
    recall, precision = np.append(0, hits / positives.sum()), hits / (np.flatnonzero(last) + 1)
    return recall, np.append(precision[0], precision), float((np.diff(recall) * precision).sum())


if __name__ == "__main__":
    run_script(main)
