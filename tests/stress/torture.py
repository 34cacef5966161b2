"""Kill training runs at random moments, resume them, and compare with a run that nothing disturbed.

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
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script
from utils.checkpoint import load_checkpoint
from utils.runtime.cli import Parser, UserError, number, run_script

REPOSITORY = Path(__file__).resolve().parents[2]
# Saved at every step; on one thread, so that sums are the same whatever else the machine does.
OPTIONS = ["--dataset", "shapes", "--img_size", "40", "--batch_size", "8", "--num_workers", "1"]
OPTIONS += ["--total_epoch", "12", "--save_every", "1", "--device", "cpu"]
BEGUN: set[Path] = set()  # folders of runs that have saved something, and may not lose it
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    args = parse_args()
    if args.fuzz:
        fuzz_parsers(args.fuzz, args.seed)
    if args.rounds:
        torture_runs(args.rounds, args.seed)


def fuzz_parsers(count: int, seed: int) -> None:
    """Feed every parser of outside data so many malformed files, and print what became of them."""
    try:
        from fuzz import PARSERS, fuzz
    except ImportError as error:
        raise UserError(f"--fuzz needs {error.name}: pip install -r requirements-dev.txt") from None
    for name in PARSERS:
        with tempfile.TemporaryDirectory() as folder:
            refused, taken = fuzz(name, Path(folder), count, seed)
        print(f"{name:16} {refused:6} refused in one line each, {taken:6} taken", flush=True)


def torture_runs(rounds: int, seed: int) -> None:
    """Interrupt runs at least so many times; UserError where one is lost, damaged or ends otherwise."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), random.Random(seed)
        undisturbed, tortured = folder / "undisturbed", folder / "tortured"
        script("utils/prepare_shapes.py", "--num_train", "40", "--num_test", "10", cwd=folder)
        script("main.py", *OPTIONS, "--output_dir", str(undisturbed), cwd=folder)
        interruptions = runs = 0
        while interruptions < rounds:
            shutil.rmtree(tortured, ignore_errors=True)
            BEGUN.discard(tortured)
            while not run_until(tortured, folder, seconds=rng.uniform(3, 9), file_size=None):
                interruptions += 1
                check(tortured)
                if interruptions % 5 == 0:  # and now and then no place on the disk
                    run_until(tortured, folder, seconds=9, file_size=rng.randrange(2**20, 180 * 2**20))
                    interruptions += 1
                    check(tortured)
            compare(undisturbed, tortured)
            runs += 1
            print(
                f"{interruptions} interruptions of {runs} runs: none lost, nothing damaged, same weights",
                flush=True,
            )


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Kill training runs at random, resume them, compare with an undisturbed one.")
    parser.add_argument(
        "--rounds", type=number(int, 0), default=100, help="least number of kills [default: %(default)s]"
    )
    parser.add_argument(
        "--fuzz",
        type=number(int, 0),
        default=0,
        metavar="COUNT",
        help="first feed every parser so many malformed files [default: none]",
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="of the random moments [default: %(default)s]"
    )
    return parser.parse_args()


def script(*arguments: str, cwd: Path) -> None:
    """Run one of the scripts to its end."""
    command = [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]]
    result = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{arguments[0]} failed: {result.stderr}")


def run_until(run_folder: Path, cwd: Path, seconds: float | None, file_size: int | None) -> bool:
    """Start or resume the run, and kill it -9 after so many seconds; returns whether it came to its end.

    file_size: bytes that no file may exceed, as if the disk were full.
    """
    saved = run_folder / "last.pth"
    begun = run_folder in BEGUN
    if begun and not saved.exists():
        raise UserError(f"{saved} was lost")
    start = ["--resume"] if begun else [*OPTIONS, "--overwrite"]
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))) if file_size else None
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), *start, "--output_dir", str(run_folder)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    finally:
        if saved.exists():
            BEGUN.add(run_folder)
    refused = file_size and process.returncode == 2 and "cannot be written" in err and "Traceback" not in err
    if process.returncode and not refused:
        raise UserError(f"the run was lost: {err}")
    return process.returncode == 0


def check(run_folder: Path) -> None:
    """Raise UserError if a file of the run is damaged."""
    for path in run_folder.glob("*.pth"):
        load_checkpoint(path)
    log = run_folder / "log.jsonl"
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()] if log.exists() else []
    if epochs != list(range(1, len(epochs) + 1)):
        raise UserError(f"{log} has epochs {epochs}")


def compare(undisturbed: Path, tortured: Path) -> None:
    """Raise UserError unless both runs have the same log, but for the times, and the same weights."""
    for name in ("last.pth", "best.pth"):
        expected, found = (load_checkpoint(folder / name)["model"] for folder in (undisturbed, tortured))
        if not all(torch.equal(expected[key], found[key]) for key in expected):
            raise UserError(f"{name} differs from the undisturbed run's")
    logs = []
    for folder in (undisturbed, tortured):
        logs.append([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])
        for record in logs[-1]:
            del record["seconds"], record["images_per_second"]
    if logs[0] != logs[1]:
        raise UserError("log.jsonl differs from the undisturbed run's")


if __name__ == "__main__":
    run_script(main)
