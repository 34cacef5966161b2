"""The stages that run whole scripts: val.py --help, demo.py, main.py on shapes, and prepare_coco.py."""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.inputs import make_coco
from benchmarks.network import (
    our_validation,
    relative_difference,
    run_version,
    start_network,
    textbook_model,
)
from benchmarks.settings import Settings, Variant, find_target
from benchmarks.table import Row
from benchmarks.timing import REPOSITORY, in_turns, run_measured, time_in_turns
from utils.data.shapes import ShapesOptions, make_shapes
from utils.training.log import read_log

LABEL_FOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.textbook import label_folder
label_folder(sys.argv[2], depth=int(sys.argv[3]), img_size=int(sys.argv[4]), device=sys.argv[5])
"""
LOAD_COCO = "import sys; from pycocotools.coco import COCO; [COCO(path) for path in sys.argv[1:]]"
SHAPES_TOLERANCE = 0.5  # points of mAP


def time_startup(settings: Settings) -> Iterator[Row]:
    """Time `val.py --help`; the textbook imports torch and torchvision, and the limit is torch alone."""
    commands = [
        [sys.executable, "-c", "import torch"],
        [sys.executable, "-c", "import torch, torchvision"],
        [sys.executable, str(REPOSITORY / "val.py"), "--help"],
    ]
    runs = [partial(subprocess.run, command, check=True, capture_output=True) for command in commands]
    limit, imports, our_time = time_in_turns(settings.sizes.rounds, *runs)
    yield Row("start-up: val.py --help", "s", imports, our_time, limit, "importing torch")


def time_demo(settings: Settings) -> Iterator[Row]:
    """Time the scores of a folder of photographs, start-up included; the limit is the network alone."""
    device, sizes = settings.device, settings.sizes
    folder = settings.folder / "demo"
    link_photos(folder, settings.photos, sizes.demo_photos)
    torch.save(textbook_model(settings).state_dict(), folder.with_suffix(".pth"))
    torch.save(start_network(sizes.depth).state_dict(), settings.folder / "model.pth")

    textbook_words = [str(REPOSITORY), str(folder), str(sizes.depth), str(sizes.img_size), device.type]
    plain = run_measured(["-c", LABEL_FOLDER, *textbook_words], settings.folder)
    expected = np.array(list(json.loads(folder.with_suffix(".json").read_text()).values()))
    words = ["--load_from", "model.pth", "--dataset", "coco", "--img_dir", "demo", "--json", "scores.json"]
    words += ["--img_size", str(sizes.img_size), "--device", device.type]
    for amp in settings.amps:
        demo = run_measured([str(REPOSITORY / "demo.py"), *words, "--amp", amp], settings.folder)
        entries = json.loads((settings.folder / "scores.json").read_text())
        found = np.array([list(entry["scores"].values()) for entry in entries])
        difference = relative_difference(found, expected)
        network = run_version(partial(our_validation, variant=Variant(amp)), settings)
        limit = network.from_memory * sizes.demo_photos / 1000
        name = f"demo.py, {sizes.demo_photos} photographs, ResNet-{sizes.depth}, {Variant(amp).title(device)}"
        costs = plain.seconds, demo.seconds, limit
        target = find_target({"cpu": (2, 2)}, device, amp)
        same = difference < (0.01 if amp == "off" else 0.05)
        check = f"scores to {difference:.0e}"
        yield Row(name, "s", *costs, "the network on data in memory", target, same, check)


def link_photos(folder: Path, photos: list[str], number: int) -> None:
    """Make a folder with links to photographs, which repeat if there are too few."""
    folder.mkdir()
    for index in range(number):
        photo = Path(photos[index % len(photos)])
        (folder / f"{index:04d}.jpg").symlink_to(photo.resolve())


def compare_shapes(settings: Settings) -> Iterator[Row]:
    """Compare the mAP that main.py reaches on shapes in lower precision with that in float32."""
    num_train = settings.sizes.shapes
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
        options = ShapesOptions(num_train=num_train, num_test=num_train // 3)
        make_shapes(settings.folder / "data" / "shapes", options)
    seeds = range(settings.sizes.seeds)
    lower = [amp for amp in settings.amps if amp != "off"]
    runs = [(amp, seed) for amp in ("off", *lower) for seed in seeds]
    with ThreadPoolExecutor(len(runs) if settings.device.type == "cuda" else 1) as pool:
        results = pool.map(lambda run: train_shapes(settings, *run), runs)
        mAP_of = dict(zip(runs, results))
    exact_mean = statistics.mean(mAP_of["off", seed] for seed in seeds)
    for amp in lower:
        mean = statistics.mean(mAP_of[amp, seed] for seed in seeds)
        difference = abs(mean - exact_mean)
        pairs = ", ".join(f"{mAP_of[amp, seed]:.2f} and {mAP_of['off', seed]:.2f}" for seed in seeds)
        name = f"shapes, {amp} for float32, {len(seeds)} seeds"
        same = difference <= SHAPES_TOLERANCE
        check = f"mAP to {difference:.2f} points ({pairs})"
        yield Row(name, "% mAP", exact_mean, mean, same=same, check=check)


def train_shapes(settings: Settings, amp: str, seed: int) -> float:
    """Train on shapes by main.py; return the last epoch's mAP in %."""
    words = ["--dataset", "shapes", "--device", settings.device.type, "--amp", amp, "--seed", str(seed)]
    words += ["--num_workers", "1", "--output_dir", f"{amp}_{seed}"]
    command = [sys.executable, str(REPOSITORY / "main.py"), *words]
    subprocess.run(command, cwd=settings.folder, check=True, stdout=subprocess.DEVNULL)
    return 100 * read_log(settings.folder / f"{amp}_{seed}")[-1]["mAP"]


def time_prepare(settings: Settings) -> Iterator[Row]:
    """Time prepare_coco, in seconds and in peak memory; the limit is pycocotools' load of the same files."""
    sizes = settings.sizes
    folder = settings.folder / "COCO2014"
    labels = make_coco(folder, sizes.coco_images, sizes.coco_boxes)
    files = [str(folder / "annotations" / f"instances_{split}2014.json") for split in ("train", "val")]
    script = str(REPOSITORY / "utils" / "prepare_coco.py")
    load, prepare = in_turns(
        sizes.long_rounds,
        lambda: run_measured(["-c", LOAD_COCO, *files], settings.folder),
        lambda: run_measured([script, "--data_path", str(folder)], settings.folder),
    )
    entries = json.loads((settings.folder / "data" / "coco" / "train_coco2014.json").read_text())
    same = len(entries) == len(labels) and category_ids(entries) == labels
    name = f"prepare_coco, {sizes.coco_images:,} images"
    limit = statistics.median(usage.seconds for usage in load)
    ours = statistics.median(usage.seconds for usage in prepare)
    yield Row(name, "s", limit, ours, limit, "pycocotools' load", 1 / 1.3, same, "labels equal")
    name += ", peak memory"
    limit = statistics.median(usage.memory for usage in load)
    ours = statistics.median(usage.memory for usage in prepare)
    yield Row(name, "MiB", limit, ours, limit, "pycocotools' load", 1 / 1.2, same, "labels equal")


def category_ids(entries: list[dict]) -> dict[str, set[int]]:
    """Return the category ids of each image, by file name, from the entries of a label file."""
    labels = {}
    for entry in entries:
        ids = {i for i, value in enumerate(entry["target"], start=1) if value}
        labels[Path(entry["img_path"]).name] = ids
    return labels
