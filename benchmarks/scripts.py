"""The stages that run whole scripts: demo.py on a folder of photographs, main.py on the data set shapes."""

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
from benchmarks.timing import REPOSITORY, TARGETS, Row, Settings, Variant, run_measured
from pipeline.resnet_csra import ResNet_CSRA
from utils.log import read_log
from utils.prepare_shapes import make_shapes

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
    for amp in dict.fromkeys(variant.amp for variant in settings.variants):
        command = [str(REPOSITORY / "demo.py"), *words, "--amp", amp]
        seconds, _ = run_measured(command, settings.folder)
        entries = json.loads((settings.folder / "scores.json").read_text())
        found = np.array([[*entry["scores"].values()] for entry in entries])
        limit = call(our_validation, settings, Variant(amp)).from_memory * count / 1000
        yield Row(
            f"demo.py, {count} photographs, ResNet-{settings.depth}, {Variant(amp).describe(device)}",
            "s",
            seconds,
            plain_seconds,
            TARGETS.get((device.type, "demo", amp)),
            limit,
            "the network on data in memory",
            *judge(found, expected, "scores", amp),
        )


def compare_shapes(settings: Settings) -> Iterator[Row]:
    """Compare the mAP that main.py reaches on shapes in lower precision with that in float32."""
    make_shapes(
        settings.folder / "data" / "shapes", settings.num_shapes, settings.num_shapes // 3, 64, "easy", 0
    )
    amps = list(dict.fromkeys(["off", *(variant.amp for variant in settings.variants)]))
    runs = [(amp, seed) for amp in amps for seed in range(settings.num_seeds)]
    with ThreadPoolExecutor(len(runs) if settings.device.type == "cuda" else 1) as pool:
        values = dict(zip(runs, pool.map(lambda run: train_shapes(settings, *run), runs)))
    mean = {amp: statistics.mean(values[amp, seed] for seed in range(settings.num_seeds)) for amp in amps}
    for amp in amps[1:]:
        each = [
            ", ".join(f"{values[a, seed]:.2f}" for seed in range(settings.num_seeds)) for a in ("off", amp)
        ]
        yield Row(
            f"shapes, mean of {settings.num_seeds} seeds, {amp} against float32",
            "% mAP",
            mean[amp],
            mean["off"],
            same=abs(mean[amp] - mean["off"]) <= settings.tolerance,
            check=f"mAP to {abs(mean[amp] - mean['off']):.2f} points ({each[1]} against {each[0]})",
        )


def train_shapes(settings: Settings, amp: str, seed: int) -> float:
    """Train on shapes by main.py; return the last epoch's mAP in %."""
    words = ["--dataset", "shapes", "--device", settings.device.type, "--amp", amp, "--seed", str(seed)]
    words += ["--num_workers", "1", "--output_dir", f"{amp}_{seed}"]
    command = [sys.executable, str(REPOSITORY / "main.py"), *words]
    subprocess.run(command, cwd=settings.folder, check=True, capture_output=True)
    return 100 * read_log(settings.folder / f"{amp}_{seed}")[-1]["mAP"]
