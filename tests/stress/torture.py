"""Kill training runs at random moments, resume them, and compare them with an uninterrupted run.

python tests/stress/torture.py [--rounds 100] [--fuzz 1000] [--seed 0]
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script
from utils.runtime.arguments import Parser, number
from utils.runtime.errors import UserError
from utils.runtime.script import run_script
from utils.weights.contents import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
# The runs save at every step. They use one thread, so that sums do not depend on the load of the machine.
OPTIONS = ["--dataset", "shapes", "--img_size", "40", "--batch_size", "8", "--num_workers", "1"]
OPTIONS += ["--total_epoch", "12", "--save_every", "1", "--device", "cpu"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    args = parse_args()
    if args.fuzz:
        fuzz_parsers(args.fuzz, args.seed)
    if args.rounds:
        torture_runs(args.rounds, args.seed)


def parse_args() -> argparse.Namespace:
    parser = Parser("Kill training runs, resume them, and compare them with an uninterrupted run.")
    rounds_help = "least number of interruptions"
    parser.add_argument("--rounds", type=number(int, 0), default=100, help=rounds_help)
    fuzz_help = (
        "before that, give each parser malformed files until it refuses COUNT of them; "
        "give up after 30 x COUNT files"
    )
    parser.add_argument("--fuzz", type=number(int, 0), default=0, metavar="COUNT", help=fuzz_help)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of the random choices")
    return parser.parse_args()


def fuzz_parsers(count: int, seed: int) -> None:
    """Give malformed files to each parser of outside data, and print how many it refuses and accepts."""
    try:
        from fuzz import PARSERS, fuzz
    except ModuleNotFoundError as error:
        raise UserError(f"--fuzz needs {error.name}: pip install -r requirements-dev.txt") from None
    for name in PARSERS:
        with tempfile.TemporaryDirectory() as folder:
            num_refused, num_accepted = fuzz(name, Path(folder), count, seed)
        print(f"{name:20} {num_refused:6} refused in one line each, {num_accepted:6} accepted", flush=True)
        if num_refused < count:
            print(f"{name:20} gave up: it refused fewer than {count} of 30 x {count} files", flush=True)


def torture_runs(num_rounds: int, seed: int) -> None:
    """Interrupt runs `num_rounds` times or more; UserError if one is lost or damaged or ends differently."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uninterrupted, tortured = folder / "uninterrupted", folder / "tortured"
        for words in (
            ["utils/prepare_shapes.py", "--num_train", "40", "--num_test", "10"],
            ["main.py", *OPTIONS, "--output_dir", str(uninterrupted)],
        ):
            start = time.monotonic()
            result = run(words, folder)
            seconds = time.monotonic() - start
            if result.returncode:
                raise UserError(f"{words[0]} failed: {result.stderr}")
        num_interruptions = num_runs = 0
        while num_interruptions < num_rounds:
            shutil.rmtree(tortured, ignore_errors=True)
            # Relative to the whole run, so that a slow machine makes progress between two kills, too.
            while not run_until(tortured, seconds * rng.uniform(0.1, 0.4), random_limit(rng)):
                num_interruptions += 1
                check(tortured)
            compare(uninterrupted, tortured)
            num_runs += 1
            print(
                f"{num_interruptions} interruptions of {num_runs} runs: no run lost, no file damaged, "
                "the same weights",
                flush=True,
            )


def random_limit(rng: random.Random) -> int | None:
    """Return, in one of six cases, a limit on the size of files in bytes, which acts like a full disk."""
    return None if rng.randrange(6) else rng.randrange(2**20, 180 * 2**20)


def run(
    words: list[str], folder: Path, seconds: float | None = None, file_size: int | None = None
) -> subprocess.CompletedProcess:
    """Run a script of the repository in a folder; raise TimeoutExpired if it had to be killed.

    file_size: the bytes that no file may exceed.
    """
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))) if file_size else None
    return subprocess.run(
        [sys.executable, str(REPOSITORY / words[0]), *words[1:]],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=seconds,
        preexec_fn=limit,
    )


def run_until(run_folder: Path, seconds: float, file_size: int | None) -> bool:
    """Start or resume a run and kill it with -9 after some seconds; return whether it finished before."""
    last = run_folder / "last.pth"
    has_begun = last.exists()
    words = ["main.py", "--output_dir", str(run_folder)]
    words += ["--resume"] if has_begun else [*OPTIONS, "--overwrite"]
    try:
        result = run(words, run_folder.parent, seconds, file_size)
    except subprocess.TimeoutExpired:
        finished = False
    else:
        finished = result.returncode == 0
        full = file_size and result.returncode == 2 and "cannot be written" in result.stderr
        if not finished and (not full or "Traceback" in result.stderr):
            raise UserError(f"the run was lost: {result.stderr}")
    if has_begun and not last.exists():
        raise UserError(f"{last} was lost")
    return finished


def check(run_folder: Path) -> None:
    """Raise UserError if a file of the run is damaged."""
    for path in run_folder.glob("*.pth"):
        load_checkpoint(path)
    epochs = [record["epoch"] for record in read_records(run_folder)]
    if epochs != list(range(1, len(epochs) + 1)):
        raise UserError(f"the log in {run_folder} has the epochs {epochs}")


def compare(uninterrupted: Path, tortured: Path) -> None:
    """Raise UserError unless both runs have the same weights and, except for the times, the same log."""
    for name in ("last.pth", "best.pth"):
        expected, found = (load_checkpoint(folder / name)["model"] for folder in (uninterrupted, tortured))
        if not all(torch.equal(expected[key], found[key]) for key in expected):
            raise UserError(f"{name} differs from that of the uninterrupted run")
    logs = [read_records(folder) for folder in (uninterrupted, tortured)]
    for record in [*logs[0], *logs[1]]:
        del record["seconds"], record["images_per_second"]
    if logs[0] != logs[1]:
        raise UserError("log.jsonl differs from that of the uninterrupted run")


def read_records(folder: Path) -> list[dict]:
    """Return the records in a run's log; [] if there is no log yet."""
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":
    run_script(main)
