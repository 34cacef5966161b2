"""Damage files as disks and downloads do: each copy must be refused, or give what the whole file gives.

python tests/stress/damage.py [--count 2400] [--seed 0]
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script
from utils.data.labels import Labels, Paths, Targets
from utils.metrics.blocks import ArrayScores
from utils.metrics.score_files import read_scores, write_scores
from utils.runtime.arguments import Parser, number
from utils.runtime.errors import UserError
from utils.runtime.script import run_script
from utils.weights.contents import load_checkpoint

END = 700  # bytes at the end of a small archive, which hold its directory and the records behind it
SECTOR = 128


def flip(content: bytearray, rng: random.Random) -> bytearray:
    """Change one bit."""
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def flip_end(content: bytearray, rng: random.Random) -> bytearray:
    """Change one bit near the end."""
    content[-rng.randrange(1, END)] ^= 1 << rng.randrange(8)
    return content


def cut(content: bytearray, rng: random.Random) -> bytearray:
    """Cut the end off."""
    return content[: rng.randrange(len(content))]


def scribble(content: bytearray, rng: random.Random) -> bytearray:
    """Replace 20 bytes in different places."""
    for _ in range(20):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return content


def scribble_end(content: bytearray, rng: random.Random) -> bytearray:
    """Replace 1 to 4 bytes in different places near the end."""
    for _ in range(rng.randrange(1, 5)):
        content[-rng.randrange(1, END)] = rng.randrange(256)
    return content


def splice(content: bytearray, rng: random.Random) -> bytearray:
    """Replace some bytes by more or fewer others."""
    start = rng.randrange(len(content))
    content[start : start + rng.randrange(50)] = rng.randbytes(rng.randrange(50))
    return content


def erase(content: bytearray, rng: random.Random) -> bytearray:
    """Replace a sector by zeros."""
    start = SECTOR * rng.randrange(len(content) // SECTOR)
    content[start : start + SECTOR] = bytes(SECTOR)
    return content


def exchange(content: bytearray, rng: random.Random) -> bytearray:
    """Exchange two sectors."""
    first, second = (SECTOR * index for index in rng.sample(range(len(content) // SECTOR), 2))
    one, other = content[first : first + SECTOR], content[second : second + SECTOR]
    content[first : first + SECTOR] = other
    content[second : second + SECTOR] = one
    return content


DAMAGES = (flip, flip_end, cut, scribble, scribble_end, splice, erase, exchange)
Damage = Callable[[bytearray, random.Random], bytearray]


class Kind(NamedTuple):
    """A kind of file: how to write a good one, and how to read one into plain values that can be compared."""

    write: Callable[[Path], None]
    read: Callable[[Path], object]


class Outcome(NamedTuple):
    """How many damaged files were refused, read as if they were whole, and read with other values."""

    refused: int
    same: int
    wrong: int


def write_checkpoint(path: Path) -> None:
    weights = {"a": torch.randn(100, 10), "empty": torch.zeros(0), "b": torch.arange(5)}
    config = {"lam": 0.1, "img_size": 64}
    torch.save({"model": weights, "config": config, "classes": ["a"], "record": {}}, path)


def read_checkpoint(path: Path) -> object:
    checkpoint = load_checkpoint(path)
    weights = {name: value.tolist() for name, value in checkpoint["model"].items()}
    return weights, checkpoint["config"], checkpoint["classes"], checkpoint["record"]


def write_small_scores(path: Path) -> None:
    targets = np.array([[1, 0, -1], [0, 1, 1], [1, 1, 0]] * 4, dtype=np.int8)
    paths = [f"{index}.jpg" for index in range(12)]
    scores = ArrayScores(np.random.default_rng(0).random((12, 3)))
    labels = Labels(Paths.of(paths), Targets.of(targets), None, True)
    write_scores(path, scores, labels, ["cat", "dog", "cow"])


def read_small_scores(path: Path) -> object:
    saved = read_scores(path)
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in saved]


KINDS = {
    "checkpoint": Kind(write_checkpoint, read_checkpoint),
    "scores": Kind(write_small_scores, read_small_scores),
}


def try_damage(kind: Kind, damage: Damage, count: int, seed: int, folder: Path) -> Outcome:
    """Read `count` damaged copies of a file. A refusal is a UserError that names the file."""
    whole = folder / "whole"
    damaged = folder / "damaged"
    kind.write(whole)
    content = whole.read_bytes()
    expected = kind.read(whole)
    refused = 0
    same = 0
    for index in range(count):
        damaged.unlink(missing_ok=True)  # ext4 writes an emptied file to the disk at once
        damaged.write_bytes(damage(bytearray(content), random.Random(seed + index)))
        try:
            value = kind.read(damaged)
        except UserError as error:
            refused += str(damaged) in str(error)
        else:
            same += value == expected
    return Outcome(refused, same, count - refused - same)


def main() -> None:
    args = parse_args()
    wrong = 0
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    for name, kind in KINDS.items():
        for damage in DAMAGES:
            with tempfile.TemporaryDirectory() as folder:
                outcome = try_damage(kind, damage, args.count // len(DAMAGES), args.seed, Path(folder))
            counts = "  ".join(f"{value:5} {word}" for word, value in outcome._asdict().items())
            print(f"{name:12} {damage.__name__:14} {counts}", flush=True)
            wrong += outcome.wrong
    if wrong:
        raise UserError(f"{wrong} damaged files were read with wrong values")


def parse_args() -> argparse.Namespace:
    parser = Parser("Read damaged files, and count those that are refused, and those read with wrong values.")
    parser.add_argument("--count", type=number(int, 1), default=2400, help="damaged files of each kind")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of the damage")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
