"""Measure the paper's claim: average pooling, attention added to it without training, and CSRA.

python experiments/claims.py --dataset voc07 --out FOLDER [--rows pooling csra_h1_lam0.1] [options of main.py]
"""

import argparse
import signal
import subprocess
import sys
from itertools import compress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from experiments.pointing import by_size, pointing_game, read_boxes
from utils.data.classes import class_names
from utils.data.datasets import DatasetSpec, dataset_spec, label_file
from utils.data.preparing import write_labels
from utils.data.samples import load_split
from utils.plot import PALETTE, make_figure
from utils.prepare_csv import stratify
from utils.runtime.cli import Parser, UserError, given_path, number, run_script
from utils.runtime.files import atomic_write, check_folder, read_json, write_json, write_json_list
from utils.training.log import read_log

REPOSITORY = Path(__file__).resolve().parents[1]
# Each row of the table: a title, and options of main.py.
ROWS = {
    "pooling": ("average pooling", ["--num_heads", "0"]),
    "pooling_lr1": (
        "average pooling, head at the backbone's rate",
        ["--num_heads", "0", "--head_lr_factor", "1"],
    ),
} | {
    f"csra_h{heads}_lam{lam}": (
        f"CSRA, {heads} head{'s' * (heads > 1)}, λ = {lam}",
        ["--num_heads", str(heads), "--lam", str(lam)],
    )
    for heads in (1, 2, 4)
    for lam in (0.1, 0.2, 0.3)
}
# These are also trained on four fifths of the training images, to choose λ and T on the rest.
CHOICE = ("pooling", "csra_h1_lam0.1", "csra_h4_lam0.1")
SWEEP = ["lam=0:1:0.1", "T=1,2,4,inf,trained"]


def main() -> None:
    args, words = parse_args()
    check_folder(args.out, "--out")
    make_figure(1, 1)  # raises UserError without matplotlib, before any training
    spec = dataset_spec(args.dataset)
    # The data set for the choice is one of the user's own, and needs these defaults. Later options win.
    names = ("model", "pretrained", "img_size", "normalize", "total_epoch", "decay_step")
    given = {name: getattr(spec, name) for name in names}
    if any(word.startswith(("--backbone_weights", "--cutmix")) for word in words):
        del given["pretrained"]
    words = [f"--{name}={value}" for name, value in given.items() if value is not None] + words
    runs = [(f"{row}_choice", row, f"{args.dataset}_choice", 0) for row in CHOICE if row in args.rows]
    runs += [(f"{row}_seed{s}", row, args.dataset, s) for s in range(args.seeds) for row in args.rows]
    missing = [run for run in runs if not (args.out / f"{run[0]}.json").exists()]
    if missing and (test_file := label_file(spec, "test")).exists():  # else main.py makes it, or says how
        load_split(spec, "test", spec.img_size)  # raises UserError if it is malformed
        read_boxes(read_json(test_file)[0])  # raises UserError if the data set has none
    if any(dataset != args.dataset for _, _, dataset, _ in missing):
        make_choice_split(args.dataset, spec)
    for index, (name, row, dataset, seed) in enumerate(missing, start=1):
        print(f"\nrun {index} of {len(missing)}: {name}", flush=True)
        folder = args.out / "runs" / name
        options = [*words, "--dataset", dataset, "--seed", str(seed), *ROWS[row][1]]
        run_command("main.py", *options, "--output_dir", str(folder), "--resume")
        write_json(args.out / f"{name}.json", judge(folder, dataset), indent=None)
    results = {path.stem: read_json(path) for path in sorted(args.out.glob("*.json"))}
    print("\n".join(["", *table(results)]))
    for name, figure in draw(results).items():
        with atomic_write(args.out / f"{name}.png", "wb") as file:
            figure.savefig(file, format="png", dpi=120)
        print(f"written to {args.out / name}.png")


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
    load_split(spec, "train", spec.img_size)  # raises UserError if files are missing
    folder = Path("data", f"{dataset}_choice")
    classes, entries = class_names(spec.folder), read_json(label_file(spec, "train"))
    held_out = stratify(np.array([entry["target"] for entry in entries]) == 1, fraction=0.2, seed=0)
    write_json_list(folder / "classes.json", classes)
    splits = {
        "train.json": list(compress(entries, ~held_out)),
        "test.json": list(compress(entries, held_out)),
    }
    write_labels(folder, classes, splits)


def run_command(script: str, *words: str) -> None:
    """Run a script of the repository; UserError if it fails. At a signal, the script may first save."""
    process = subprocess.Popen([sys.executable, str(REPOSITORY / script), *words])
    received = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGTERM:  # a terminal sends Ctrl-C to the script as well
            process.terminate()

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    status = process.wait()
    for name, handler in before.items():
        signal.signal(name, handler)
    if status or received:  # a signal after the last step does not change the status
        raise UserError(f"{script} {' '.join(words)} ended with status {status}; run this again to go on")


def judge(folder: Path, dataset: str) -> dict:
    """Return the metrics of a run's last epoch, its mAP for each λ and T, its pointing game and its time."""
    checkpoint, file = folder / "last.pth", folder / "metrics.json"
    words = ["--dataset", dataset, "--load_from", str(checkpoint), "--out", str(file)]
    run_command("val.py", *words, "--sweep", *SWEEP)
    metrics, log = read_json(file), read_log(folder)
    result = {key: metrics[key] for key in ("mAP", "CF1", "OF1", "AP")}
    result["sweep"] = [{key: point[key] for key in ("lam", "T", "mAP")} for point in metrics["sweep"]]
    result["epochs"] = [{key: record[key] for key in ("train_loss", "mAP", "seconds")} for record in log]
    return result | {"pointing": by_size(*pointing_game(checkpoint, dataset))}


def table(results: dict[str, dict]) -> list[str]:
    """Return the lines of a table in Markdown, with the mean and standard deviation over the seeds."""
    lines = ["| model | seeds | mAP, % | CF1, % | OF1, % | points at an object, % | minutes |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row, (title, _) in ROWS.items():
        runs = [results[name] for name in results if name.startswith(f"{row}_seed")]
        if not runs:
            continue
        columns = [[run[key] for run in runs] for key in ("mAP", "CF1", "OF1")]
        columns.append([run["pointing"]["all"]["hits"] for run in runs])
        minutes = np.mean([sum(epoch["seconds"] for epoch in run["epochs"]) / 60 for run in runs])
        cells = " | ".join(spread(values) for values in columns)
        lines.append(f"| {title} | {len(runs)} | {cells} | {minutes:.0f} |")
        if f"{row}_choice" in results:
            best = max(results[f"{row}_choice"]["sweep"], key=lambda point: point["mAP"])
            title += f", tested with λ = {best['lam']:g}, T {best['T']}"
            lines.append(f"| {title} | {len(runs)} | {spread([at(run, best) for run in runs])} | | | | |")
    return lines


def at(run: dict, point: dict) -> float:
    """Return a run's mAP at the λ and T of a point of another run's sweep."""
    same = [p["mAP"] for p in run["sweep"] if (p["lam"], p["T"]) == (point["lam"], point["T"])]
    return same[0]


def spread(fractions: list[float]) -> str:
    """Format the mean in %, and the standard deviation of the sample if there is more than one."""
    percent = 100 * np.array(fractions)
    deviation = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
    return f"{percent.mean():.2f}{deviation}"


def draw(results: dict[str, dict]) -> dict:
    """Return charts by name: AP by class, and mAP against λ on the images held out for the choice."""
    figures = {}
    pair = {
        title: [r["AP"] for name, r in results.items() if name.startswith(f"{row}_seed")]
        for row, title in (("pooling", "average pooling"), ("csra_h1_lam0.1", "CSRA, 1 head, λ = 0.1"))
    }
    if all(pair.values()):
        classes = [c for c, ap in pair["average pooling"][0].items() if ap is not None]  # has positives
        means = [100 * np.mean([[ap[c] for c in classes] for ap in runs], axis=0) for runs in pair.values()]
        order = np.argsort(np.subtract(*means[::-1]))
        figures["classes"] = make_figure(7, 1.2 + 0.26 * len(classes))
        axis = figures["classes"].subplots()
        for title, values, marker, colour in zip(pair, means, "os", PALETTE):
            axis.plot(values[order], range(len(classes)), marker, label=title, color=colour)
        axis.hlines(range(len(classes)), *(values[order] for values in means), color="0.6", zorder=0)
        axis.set_yticks(range(len(classes)), np.array(classes)[order])
        axis.set(xlabel="average precision, %", title="Classes by what CSRA gains, most on top")
        figures["classes"].legend(loc="outside lower center", ncols=2)
    curves = {row: results[f"{row}_choice"] for row in CHOICE if f"{row}_choice" in results}
    if curves:
        figures["lambda"] = make_figure(6.5, 4.2)
        axis = figures["lambda"].subplots()
        for row, result in curves.items():
            points = [(p["lam"], 100 * p["mAP"]) for p in result["sweep"] if p["T"] == "as trained"]
            axis.plot(*zip(*sorted(points)), marker="o", label=ROWS[row][0])
        axis.set(xlabel="λ in testing", ylabel="mAP on held-out images, %")
        axis.legend()
    return figures


if __name__ == "__main__":
    run_script(main)
