"""Measure the paper's claim: average pooling, attention added to it without training, and CSRA.

python experiments/claims.py --dataset voc07 --out FOLDER [--rows pooling csra_h1_lam0.1] [options of main.py]
"""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import argparse
import signal
import subprocess
from functools import partial
from itertools import compress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.pointing import by_size, pointing_game, read_boxes
from utils.charts.figures import PALETTE, is_chart, make_figure, write_chart
from utils.data.classes import class_names
from utils.data.datasets import DatasetSpec, dataset_spec, label_file
from utils.data.label_writing import write_labels
from utils.data.samples import load_split
from utils.data.stratification import stratify
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.errors import UserError
from utils.runtime.files import read_json, write_json, write_json_list
from utils.runtime.output_checks import check_folder, check_replaceable
from utils.runtime.script import run_script
from utils.training.log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[1]
SWEEP = ["lam=0:1:0.1", "T=1,2,4,inf,trained"]


class Row(NamedTuple):
    """A row of the table, which is a model: its title, and its options of main.py."""

    title: str
    options: list[str]


def csra_row(heads: int, lam: float) -> Row:
    """Return the row of CSRA with a number of heads and a λ."""
    title = f"CSRA, {heads} head{'' if heads == 1 else 's'}, λ = {lam}"
    return Row(title, ["--num_heads", str(heads), "--lam", str(lam)])


ROWS = {
    "pooling": Row("average pooling", ["--num_heads", "0"]),
    "pooling_lr1": Row(
        "average pooling, head at the backbone's rate",
        ["--num_heads", "0", "--head_lr_factor", "1"],
    ),
    **{f"csra_h{heads}_lam{lam}": csra_row(heads, lam) for heads in (1, 2, 4) for lam in (0.1, 0.2, 0.3)},
}
# These are also trained on four fifths of the training images, to choose λ and T on the rest.
CHOICE_ROWS = ("pooling", "csra_h1_lam0.1", "csra_h4_lam0.1")
CHARTS = ("classes", "lambda")


class Run(NamedTuple):
    """A run of main.py; `name` is that of its folder and of the file of its results."""

    name: str
    row: str
    dataset: str
    seed: int


def main() -> None:
    args, main_options = parse_args()
    check_folder(args.out, "--out")
    for name in CHARTS:
        check_replaceable(args.out / f"{name}.png", "--out:", is_chart, "experiments/claims.py")
    make_figure(1, 1)  # raises UserError without matplotlib, before any training
    spec = dataset_spec(args.dataset)
    main_options = [*default_options(spec, main_options), *main_options]  # later options win
    runs = list_runs(args.rows, args.dataset, args.seeds)
    missing = [run for run in runs if not (args.out / f"{run.name}.json").exists()]
    if missing:
        check_boxes(spec)
    if any(run.dataset != args.dataset for run in missing):
        make_choice_split(args.dataset, spec)
    for index, run in enumerate(missing, start=1):
        print(f"\nrun {index} of {len(missing)}: {run.name}", flush=True)
        folder = args.out / "runs" / run.name
        options = [*main_options, "--dataset", run.dataset, "--seed", str(run.seed), *ROWS[run.row].options]
        run_command("main.py", *options, "--output_dir", str(folder), "--resume")
        write_json(args.out / f"{run.name}.json", judge(folder, run.dataset), indent=None)
    results = {path.stem: read_json(path) for path in sorted(args.out.glob("*.json"))}
    print("\n".join(["", *table(results)]))
    for name, figure in draw(results).items():
        write_chart(args.out / f"{name}.png", figure, dpi=120)
        print(f"written to {args.out / name}.png")


def list_runs(rows: list[str], dataset: str, num_seeds: int) -> list[Run]:
    """Return the runs that the table needs: first those that choose λ and T, then all rows, seed by seed."""
    runs = [Run(f"{row}_choice", row, f"{dataset}_choice", 0) for row in CHOICE_ROWS if row in rows]
    for seed in range(num_seeds):
        runs += [Run(f"{row}_seed{seed}", row, dataset, seed) for row in rows]
    return runs


def default_options(spec: DatasetSpec, given: list[str]) -> list[str]:
    """Return main.py's options with the data set's defaults, which the data set for the choice lacks.

    given: the user's options. Weights of the user's own exclude --pretrained, and timm's models have their
    own size and normalisation.
    """
    names = ["model", "total_epoch", "decay_step"]
    if not any(word.removeprefix("--model=").startswith("timm:") for word in given):
        names += ["img_size", "normalize"]
    if not any(word.startswith(("--backbone_weights", "--cutmix")) for word in given):
        names.append("pretrained")
    values = {name: getattr(spec, name) for name in names}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def check_boxes(spec: DatasetSpec) -> None:
    """Raise UserError if the test images are malformed or have no boxes; main.py makes or misses a file."""
    test_file = label_file(spec, "test")
    if test_file.exists():
        load_split(spec, "test", spec.img_size)
        read_boxes(read_json(test_file)[0])


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Return this script's options, and the words that it passes on to main.py."""
    parser = Parser("Train average pooling and CSRA, and print a table. Other options go to main.py.")
    parser.add_argument("--dataset", required=True, help="a prepared data set with boxes: shapes or voc07")
    out_help = "folder for results of these options; finished runs are kept, broken-off ones are resumed"
    parser.add_argument("--out", type=given_path, required=True, metavar="FOLDER", help=out_help)
    rows_help = "models to train; the table shows all that are in FOLDER [default: all]"
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help=rows_help)
    parser.add_argument("--seeds", type=number(int, 1), default=1, help="runs of each model")
    return parser.parse_known_args()


def make_choice_split(dataset: str, spec: DatasetSpec) -> None:
    """Make the data set <dataset>_choice, which holds out a fifth of the training images."""
    images = load_split(spec, "train", spec.img_size)  # raises UserError if files are missing
    folder = Path("data", f"{dataset}_choice")
    classes, entries = class_names(spec.folder), read_json(label_file(spec, "train"))
    held_out = stratify(images.labels.targets, fraction=0.2, seed=0)
    kept_entries = list(compress(entries, ~held_out))
    held_out_entries = list(compress(entries, held_out))
    for name, content in (("classes", classes), ("train", kept_entries), ("test", held_out_entries)):
        is_own = partial(holds, content=content)
        check_replaceable(folder / f"{name}.json", "held-out images:", is_own, "experiments/claims.py")
    write_json_list(folder / "classes.json", classes)
    write_labels(folder, classes, {"train.json": kept_entries, "test.json": held_out_entries})


def holds(path: Path, content: Any) -> bool:
    """Return whether a JSON file holds a value."""
    return read_json(path) == content


def run_command(script: str, *words: str) -> None:
    """Run a script of the repository; UserError if it fails. At a signal, the script may first save."""
    process = subprocess.Popen([sys.executable, str(REPOSITORY / script), *words])
    received = []

    def stop(name: int, frame: FrameType | None) -> None:
        received.append(name)
        if name == signal.SIGTERM:  # a terminal sends Ctrl-C to the script as well
            process.terminate()

    handlers = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    status = process.wait()
    for name, handler in handlers.items():
        signal.signal(name, handler)
    if status or received:  # a signal after the last step does not change the status
        raise UserError(f"{script} {' '.join(words)} ended with status {status}; run this again to go on")


def judge(folder: Path, dataset: str) -> dict[str, Any]:
    """Return the metrics of a run's last epoch, its mAP for each λ and T, its pointing game and its time."""
    checkpoint = folder / "last.pth"
    file = folder / "metrics.json"
    words = ["--dataset", dataset, "--load_from", str(checkpoint), "--out", str(file)]
    run_command("val.py", *words, "--sweep", *SWEEP)
    metrics = read_json(file)
    result = choose(metrics, "mAP", "CF1", "OF1", "AP")
    result["sweep"] = [choose(point, "lam", "T", "mAP") for point in metrics["sweep"]]
    result["epochs"] = [choose(record, "train_loss", "mAP", "seconds") for record in read_log(folder)]
    result["pointing"] = by_size(*pointing_game(checkpoint, dataset))
    return result


def choose(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the values of the names alone."""
    return {name: values[name] for name in names}


def table(results: dict[str, dict]) -> list[str]:
    """Return the lines of a table in Markdown, with the mean and standard deviation over the seeds."""
    lines = ["| model | seeds | mAP, % | CF1, % | OF1, % | points at an object, % | minutes |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in ROWS:
        runs = runs_of(row, results)
        if runs:
            lines.append(trained_line(row, runs))
        if runs and f"{row}_choice" in results:
            lines.append(chosen_line(row, runs, results[f"{row}_choice"]))
    return lines


def runs_of(row: str, results: dict[str, dict]) -> list[dict]:
    """Return the results of a row, one for each seed."""
    return [result for name, result in results.items() if name.startswith(f"{row}_seed")]


def trained_line(row: str, runs: list[dict]) -> str:
    """Return the line on a model as it was trained."""
    cells = [spread([run[key] for run in runs]) for key in ("mAP", "CF1", "OF1")]
    cells.append(spread([run["pointing"]["all"]["hits"] for run in runs]))
    seconds = [sum(epoch["seconds"] for epoch in run["epochs"]) for run in runs]
    minutes = np.mean(seconds) / 60
    return f"| {ROWS[row].title} | {len(runs)} | {' | '.join(cells)} | {minutes:.0f} |"


def chosen_line(row: str, runs: list[dict], choice: dict) -> str:
    """Return the line on the same runs, tested with the λ and T that are best on the held-out images."""
    best = max(choice["sweep"], key=lambda point: point["mAP"])
    title = f"{ROWS[row].title}, tested with λ = {best['lam']:g}, T {best['T']}"
    return f"| {title} | {len(runs)} | {spread([map_at(run, best) for run in runs])} | | | | |"


def map_at(run: dict, point: dict) -> float:
    """Return a run's mAP at the λ and T of a point of another run's sweep."""
    for own in run["sweep"]:
        if (own["lam"], own["T"]) == (point["lam"], point["T"]):
            return own["mAP"]
    raise KeyError(f"the sweep has no λ = {point['lam']}, T {point['T']}")


def spread(fractions: list[float]) -> str:
    """Format the mean in %, and the standard deviation of the sample if there is more than one."""
    percent = 100 * np.array(fractions)
    deviation = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
    return f"{percent.mean():.2f}{deviation}"


def draw(results: dict[str, dict]) -> dict[str, Figure]:
    """Return charts by name: AP by class, and mAP against λ on the images held out for the choice."""
    figures = {}
    pooling = runs_of("pooling", results)
    csra = runs_of("csra_h1_lam0.1", results)
    if pooling and csra:
        figures["classes"] = draw_classes(pooling, csra)
    choices = {row: results[f"{row}_choice"] for row in CHOICE_ROWS if f"{row}_choice" in results}
    if choices:
        figures["lambda"] = draw_lambda(choices)
    return figures


def draw_classes(pooling: list[dict], csra: list[dict]) -> Figure:
    """Draw the AP of each class that has positives, in the mean over the runs of two models."""
    classes = [name for name, ap in pooling[0]["AP"].items() if ap is not None]
    pooling_means = mean_aps(pooling, classes)
    csra_means = mean_aps(csra, classes)
    order = np.argsort(csra_means - pooling_means)
    places = range(len(classes))
    figure = make_figure(7, 1.2 + 0.26 * len(classes))
    axis = figure.subplots()
    axis.plot(pooling_means[order], places, "o", label=ROWS["pooling"].title, color=PALETTE[0])
    axis.plot(csra_means[order], places, "s", label=ROWS["csra_h1_lam0.1"].title, color=PALETTE[1])
    axis.hlines(places, pooling_means[order], csra_means[order], color="0.6", zorder=0)
    axis.set_yticks(places, [classes[index] for index in order])
    axis.set(xlabel="average precision, %", title="Classes by what CSRA gains, most on top")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def mean_aps(runs: list[dict], classes: list[str]) -> np.ndarray:
    """Return the AP of each class in %, in the mean over the runs."""
    return 100 * np.mean([[run["AP"][name] for name in classes] for run in runs], axis=0)


def draw_lambda(choices: dict[str, dict]) -> Figure:
    """Draw the mAP of each model against λ, at the temperatures that it was trained with."""
    figure = make_figure(6.5, 4.2)
    axis = figure.subplots()
    for row, result in choices.items():
        points = [point for point in result["sweep"] if point["T"] == "as trained"]
        points.sort(key=lambda point: point["lam"])
        lams = [point["lam"] for point in points]
        percents = [100 * point["mAP"] for point in points]
        axis.plot(lams, percents, marker="o", label=ROWS[row].title)
    axis.set(xlabel="λ in testing", ylabel="mAP on held-out images, %")
    axis.legend()
    return figure


if __name__ == "__main__":
    run_script(main)
