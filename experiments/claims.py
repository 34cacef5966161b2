"""Measure the paper's claim on shapes: average pooling, attention added without training, and CSRA.

python experiments/claims.py --out FOLDER [--seeds 3] [--jobs 2]
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from experiments.pointing import pointing_game
from utils.log import read_log
from utils.runtime.cli import Parser, UserError, given_path, number, run_script
from utils.runtime.files import read_json

REPOSITORY = Path(__file__).resolve().parents[1]
# Each model by its number of heads.
MODELS = {0: "average pooling", 1: "CSRA, 1 head"} | {n: f"CSRA, {n} heads" for n in (2, 4, 6)}
NUM_TRAIN, NUM_TEST = 2000, 1000
IMAGES = ["--difficulty", "medium", "--size", "128"]
TRAINING = ["--dataset", "shapes", "--img_size", "128", "--warmup_epoch", "1", "--decay_step", "3"]
TRAINING += ["--num_workers", "1"]
GRID = ["lam=0:2:0.1", "T=1,2,4,inf"]


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make_images(args.out)
    runs = itertools.product(range(args.seeds), MODELS)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: train(args, *run), runs))
    rows = []
    with contextlib.chdir(args.out):
        for num_heads, name in MODELS.items():
            scores, pointing = judge(num_heads, args.seeds)
            rows.append(f"| {name} | {spread(scores)} | {spread(pointing)} |")
        scores = [without_training(seed) for seed in range(args.seeds)]
    rows.insert(1, f"| average pooling, attention added without training | {spread(scores)} | |")
    print("| model | mAP, % | maps that point at their object, % |\n|---|---|---|", *rows, sep="\n")


def parse_args() -> argparse.Namespace:
    parser = Parser("Train average pooling and CSRA on shapes of medium difficulty, and print a table.")
    out_help = "folder for images and runs; runs that are there are resumed"
    parser.add_argument("--out", type=given_path, required=True, metavar="FOLDER", help=out_help)
    parser.add_argument("--seeds", type=number(int, 1), default=3, help="runs of each model")
    parser.add_argument("--jobs", type=number(int, 1), default=2, help="runs at the same time")
    parser.add_argument("--epochs", type=number(int, 1), default=5, help="epochs of each run")
    parser.add_argument("--lam", type=number(float, 0), default=0.3, help="weight lambda of CSRA")
    return parser.parse_args()


def script(out: Path, num_threads: int, name: str, *words: object) -> None:
    """Run a script of the repository in the folder `out`; UserError if it fails."""
    command = [sys.executable, str(REPOSITORY / name), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads)}
    result = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{name} {' '.join(map(str, words))} failed: {result.stderr}")


def make_images(out: Path) -> None:
    """Make the data set, and other images to choose λ on, unless they exist."""
    for name, num_train, seed in (("shapes", NUM_TRAIN, 0), ("validation", 1, 1)):
        if not (out / "data" / name / "test.json").exists():
            words = [*IMAGES, "--num_train", num_train, "--num_test", NUM_TEST, "--seed", seed]
            script(out, 1, "utils/prepare_shapes.py", *words, "--out_dir", f"data/{name}")


def run_folder(num_heads: int, seed: int) -> Path:
    """Return the folder of a run, relative to --out."""
    return Path("runs", f"heads{num_heads}_seed{seed}")


def train(args: argparse.Namespace, seed: int, num_heads: int) -> None:
    """Train a model to its last epoch; resume the run if it exists."""
    folder = run_folder(num_heads, seed)
    words = [*TRAINING, "--num_heads", num_heads, "--seed", seed, "--total_epoch", args.epochs]
    words += ["--lam", args.lam] if num_heads else []
    words += ["--resume" if (args.out / folder / "last.pth").exists() else "--overwrite"]
    num_threads = max(1, (os.cpu_count() or 1) // args.jobs)
    script(args.out, num_threads, "main.py", *words, "--output_dir", folder)
    print(f"{folder}: mAP {100 * read_log(args.out / folder)[-1]['mAP']:.2f} %", flush=True)


def judge(num_heads: int, num_seeds: int) -> tuple[list[float], list[float]]:
    """Return for each seed the mAP of the last epoch, and the share of maps that point at objects, in %."""
    folders = [run_folder(num_heads, seed) for seed in range(num_seeds)]
    games = [pointing_game(folder / "last.pth") for folder in folders]
    return [100 * read_log(folder)[-1]["mAP"] for folder in folders], [100 * hits / n for hits, n, _ in games]


def without_training(seed: int) -> float:
    """Return the mAP in % of average pooling with attention, whose λ and T are chosen on other images."""
    checkpoint = run_folder(0, seed) / "last.pth"

    def best(dataset: str, *axes: str) -> dict:
        words = ["--dataset", dataset, "--load_from", checkpoint, "--out", "sweep.json", "--sweep", *axes]
        script(Path(), os.cpu_count() or 1, "val.py", *words)
        return max(read_json(Path("sweep.json"))["sweep"], key=lambda result: result["mAP"])

    chosen = best("validation", *GRID)
    print(f"seed {seed}: attention without training at lambda {chosen['lam']}, T {chosen['T']}", flush=True)
    return 100 * best("shapes", f"lam={chosen['lam']}", f"T={chosen['T']}")["mAP"]


def spread(values: list[float]) -> str:
    """Format the mean and the standard deviation of a sample."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0
    return f"{np.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    run_script(main)
