"""The stages that run whole scripts: demo.py on a folder of photographs, main.py on the data set shapes."""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.inputs import NUM_CLASSES
from benchmarks.network import call, judge, our_validation, scale_down_branches, textbook_model
from benchmarks.timing import REPOSITORY, Row, Settings, Variant, find_target, run_measured
from pipeline.resnet_csra import ResNet_CSRA
from utils.data.shapes import ShapesOptions, make_shapes
from utils.training.log import read_log

LABEL = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from benchmarks.textbook import label_folder; "


def time_demo(settings: Settings) -> Iterator[Row]:
    """Time the scores of a folder of photographs, start-up included; the limit is the network alone."""
    folder, device, count = settings.folder / "demo", settings.device, settings.num_demo_photos
    folder.mkdir()
    for index in range(count):
        photo = Path(settings.photos[index % len(settings.photos)])
        (folder / f"{index:04d}.jpg").symlink_to(photo.resolve())
    torch.save(textbook_model(settings).state_dict(), folder.with_suffix(".pth"))
    torch.manual_seed(0)
    ours = scale_down_branches(ResNet_CSRA(1, 0.1, NUM_CLASSES, settings.depth))
    torch.save(ours.state_dict(), settings.folder / "model.pth")

    loop = f"label_folder({str(folder)!r}, {settings.depth}, {settings.img_size}, {device.type!r})"
    plain_seconds, _ = run_measured(["-c", LABEL + loop], settings.folder)
    expected = np.array([*json.loads(folder.with_suffix(".json").read_text()).values()])
    words = ["--load_from", "model.pth", "--dataset", "coco", "--img_dir", "demo", "--json", "scores.json"]
    words += ["--img_size", str(settings.img_size), "--device", device.type]
    for amp in settings.amps:
        command = [str(REPOSITORY / "demo.py"), *words, "--amp", amp]
        seconds, _ = run_measured(command, settings.folder)
        entries = json.loads((settings.folder / "scores.json").read_text())
        found = np.array([[*entry["scores"].values()] for entry in entries])
        limit = call(our_validation, settings, Variant(amp)).from_memory * count / 1000
        name = f"demo.py, {count} photographs, ResNet-{settings.depth}, {Variant(amp).describe(device)}"
        target, limited = find_target(device, "demo", amp), (limit, "the network on data in memory")
        yield Row(name, "s", seconds, plain_seconds, target, *limited, *judge(found, expected, "scores", amp))


def compare_shapes(settings: Settings) -> Iterator[Row]:
    """Compare the mAP that main.py reaches on shapes in lower precision with that in float32."""
    num_train, seeds = settings.num_shapes, range(settings.num_seeds)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
        options = ShapesOptions(num_train=num_train, num_test=num_train // 3)
        make_shapes(settings.folder / "data" / "shapes", options)
    amps = ["off", *(amp for amp in settings.amps if amp != "off")]
    runs = [(amp, seed) for amp in amps for seed in seeds]
    with ThreadPoolExecutor(len(runs) if settings.device.type == "cuda" else 1) as pool:
        values = dict(zip(runs, pool.map(lambda run: train_shapes(settings, *run), runs)))
    mean = {amp: statistics.mean(values[amp, seed] for seed in seeds) for amp in amps}
    for amp in amps[1:]:
        difference = abs(mean[amp] - mean["off"])
        pairs = ", ".join(f"{values[amp, seed]:.2f} and {values['off', seed]:.2f}" for seed in seeds)
        check = f"mAP to {difference:.2f} points ({pairs})"
        name, same = f"shapes, {amp} for float32, {len(seeds)} seeds", difference <= settings.tolerance
        yield Row(name, "% mAP", mean[amp], mean["off"], same=same, check=check)


def train_shapes(settings: Settings, amp: str, seed: int) -> float:
    """Train on shapes by main.py; return the last epoch's mAP in %."""
    words = ["--dataset", "shapes", "--device", settings.device.type, "--amp", amp, "--seed", str(seed)]
    words += ["--num_workers", "1", "--output_dir", f"{amp}_{seed}"]
    command = [sys.executable, str(REPOSITORY / "main.py"), *words]
    subprocess.run(command, cwd=settings.folder, check=True, stdout=subprocess.DEVNULL)
    return 100 * read_log(settings.folder / f"{amp}_{seed}")[-1]["mAP"]
