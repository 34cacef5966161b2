"""The stage commands: demo.py and a textbook script, from the start of Python to the written scores."""

import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import textbook
from benchmarks.inputs import NUM_CLASSES
from benchmarks.network import relative_difference
from benchmarks.scripts import link_photos
from benchmarks.settings import Settings, Variant
from benchmarks.table import Row
from benchmarks.timing import REPOSITORY, Usage, in_turns, run_measured
from pipeline.models import build
from utils.runtime.workers import default_workers

LABEL_IN_BATCHES = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.textbook import label_in_batches
label_in_batches(*sys.argv[2:5], *map(int, sys.argv[5:]))
"""
WEIGHTS, TEXTBOOK_WEIGHTS = "commands.pth", "textbook.pth"


def time_commands(settings: Settings) -> Iterator[Row]:
    """Time the scores of folders of photographs by demo.py, as it is by default, and by the textbook."""
    model, img_size = settings.sizes.command_network
    write_networks(settings)
    for number in settings.sizes.command_photos:
        link_photos(settings.folder / f"{number}", settings.photos, number)
        calls = [partial(run_textbook, settings, number)]
        calls += [partial(run_demo, settings, number, amp) for amp in settings.amps]
        plain, *ours = in_turns(settings.sizes.command_rounds, *calls)
        expected = read_textbook(settings.folder / f"{number}.json")
        for amp, usages in zip(settings.amps, ours):
            title = Variant(amp).title(settings.device)
            name = f"demo.py, {number:,} photographs, {model}, {img_size}×{img_size}, {title}"
            difference = relative_difference(read_demo(settings.folder / demo_file(number, amp)), expected)
            same = difference < (0.01 if amp == "off" else 0.05)
            costs = median_seconds(plain), median_seconds(usages)
            yield Row(name, "s", *costs, same=same, check=f"scores to {difference:.0e}")


def write_networks(settings: Settings) -> None:
    """Write the same untrained network as demo.py and as the textbook's script read it."""
    model, img_size = settings.sizes.command_network
    torch.manual_seed(0)
    ours = build(model, 1, 0.1, NUM_CLASSES, img_size)
    torch.save(ours.state_dict(), settings.folder / WEIGHTS)
    plain = textbook.Network(model, 1, 0.1, NUM_CLASSES)
    textbook.copy_weights(plain, ours)
    torch.save(plain.state_dict(), settings.folder / TEXTBOOK_WEIGHTS)


def run_textbook(settings: Settings, number: int) -> Usage:
    """Run the textbook's script on the folder of this many photographs."""
    model, img_size = settings.sizes.command_network
    numbers = map(str, (img_size, settings.batch_size, default_workers()))
    words = [str(REPOSITORY), str(number), TEXTBOOK_WEIGHTS, model, *numbers]
    return run_measured(["-c", LABEL_IN_BATCHES, *words], settings.folder)


def run_demo(settings: Settings, number: int, amp: str) -> Usage:
    """Run demo.py on the folder of this many photographs, with its own choice whether it compiles."""
    model, img_size = settings.sizes.command_network
    words = ["--load_from", WEIGHTS, "--model", model, "--dataset", "coco", "--img_size", str(img_size)]
    words += ["--img_dir", str(number), "--json", demo_file(number, amp), "--amp", amp, "--device", "cpu"]
    words += ["--batch_size", str(settings.batch_size), "--num_workers", str(default_workers())]
    return run_measured([str(REPOSITORY / "demo.py"), *words], settings.folder)


def demo_file(number: int, amp: str) -> str:
    """Return the name of demo.py's scores of a number of photographs in one precision."""
    return f"demo_{number}_{amp}.json"


def read_textbook(path: Path) -> np.ndarray:
    """Return the scores (N, C) that the textbook's script wrote."""
    return np.array(list(json.loads(path.read_text()).values()))


def read_demo(path: Path) -> np.ndarray:
    """Return the scores (N, C) that demo.py wrote."""
    return np.array([list(entry["scores"].values()) for entry in json.loads(path.read_text())])


def median_seconds(usages: list[Usage]) -> float:
    return statistics.median(usage.seconds for usage in usages)
