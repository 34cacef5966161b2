"""The paper's claim on the data set that everyone has: average pooling, attention without training, and CSRA.

python experiments/claims.py --out FOLDER [--seeds 3] [--jobs 2]
"""

import argparse
import contextlib
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
HEADS = (0, 1, 2, 4, 6)
IMAGES = ["--difficulty", "medium", "--size", "128"]
TRAINING = ["--dataset", "shapes", "--img_size", "128", "--warmup_epoch", "1", "--decay_step", "3"]
GRID = ["lam=0:2:0.1", "T=1,2,4,inf"]


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make_images(args.out)
    runs = [(heads, seed) for seed in range(args.seeds) for heads in HEADS]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda item: train(*item, args), runs))
    with contextlib.chdir(args.out):
        rows = {
            f"CSRA, {heads} head{'s' * (heads > 1)}": judge(heads, args.seeds) for heads in HEADS if heads
        }
        free = [without_training(seed) for seed in range(args.seeds)]
        rows = {"average pooling": judge(0, args.seeds), "with attention, untrained": (free, None)} | rows
    print("| model | mAP, % | maps that point at their object, % |\n|---|---|---|")
    for name, (scores, pointing) in rows.items():
        print(f"| {name} | {spread(scores)} | {spread(pointing) if pointing else ''} |")


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Train average pooling and CSRA on shapes, medium difficulty, and print a table."
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="FOLDER", help="data and runs; what is done is kept"
    )
    parser.add_argument("--seeds", type=number(int, 1), default=3, help="runs of each [default: %(default)s]")
    parser.add_argument("--jobs", type=number(int, 1), default=2, help="runs at once [default: %(default)s]")
    parser.add_argument("--epochs", type=number(int, 1), default=5, help="of a run [default: %(default)s]")
    parser.add_argument("--lam", type=number(float, 0), default=0.3, help="lambda of CSRA [default: 0.3]")
    return parser.parse_args()


def script(name: str, *words: object, out: Path, threads: int) -> None:
    """Run one of the scripts in the folder `out`; UserError if it fails."""
    command = [sys.executable, str(REPOSITORY / name), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{name} {' '.join(map(str, words))} failed: {result.stderr}")


def make_images(out: Path) -> None:
    """Make the data set, and another for choosing λ, unless they are there."""
    for folder, counts, seed in (("shapes", (2000, 1000), 0), ("validation", (1, 1000), 1)):
        if not (out / "data" / folder / "test.json").exists():
            words = [*IMAGES, "--num_train", counts[0], "--num_test", counts[1], "--seed", seed]
            script("utils/prepare_shapes.py", *words, "--out_dir", f"data/{folder}", out=out, threads=1)


def train(heads: int, seed: int, args: argparse.Namespace) -> None:
    """Train a model, or go on with it, to its last epoch."""
    folder = Path("runs", f"heads{heads}_seed{seed}")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    words = [
        *TRAINING,
        "--num_heads",
        heads,
        "--seed",
        seed,
        "--total_epoch",
        args.epochs,
        "--num_workers",
        1,
    ]
    words += ["--lam", args.lam] if heads else []
    words += ["--resume" if (args.out / folder / "last.pth").exists() else "--overwrite"]
    script("main.py", *words, "--output_dir", folder, out=args.out, threads=threads)
    print(f"{folder}: mAP {100 * read_log(args.out / folder)[-1]['mAP']:.2f} %", flush=True)


def judge(heads: int, seeds: int) -> tuple[list[float], list[float]]:
    """Return the mAP of each seed's last epoch, and the share of its maps that point at objects, in %."""
    folders = [Path("runs", f"heads{heads}_seed{seed}") for seed in range(seeds)]
    scores = [100 * read_log(folder)[-1]["mAP"] for folder in folders]
    games = [pointing_game(folder / "last.pth") for folder in folders]
    return scores, [100 * hits / tries for hits, tries, _ in games]


def without_training(seed: int) -> float:
    """Return the mAP in % of average pooling with attention, its λ and T chosen on other images."""
    checkpoint = f"runs/heads0_seed{seed}/last.pth"

    def sweep(dataset: str, *axes: str) -> dict:
        words = ["--dataset", dataset, "--load_from", checkpoint, "--out", "sweep.json", "--sweep", *axes]
        script("val.py", *words, out=Path(), threads=os.cpu_count() or 1)
        return max(read_json(Path("sweep.json"))["sweep"], key=lambda result: result["mAP"])

    chosen = sweep("validation", *GRID)
    result = sweep("shapes", f"lam={chosen['lam']}", f"T={chosen['T']}")
    print(f"seed {seed}: attention without training at lambda {chosen['lam']}, T {chosen['T']}", flush=True)
    return 100 * result["mAP"]


def spread(values: list[float]) -> str:
    """Format the mean and the standard deviation of a sample."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0
    return f"{np.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    run_script(main)
