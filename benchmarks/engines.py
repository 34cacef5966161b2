"""The stage engines: our network on a CPU in each of its modes, ONNX Runtime, OpenVINO and the textbook."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.engine_loading import (
    CPU,
    EngineProcess,
    Work,
    missing_packages,
    peak_memory,
    profile_shares,
)
from benchmarks.engine_table import COMPILED, ENGINES, GOAL_ENGINES, OTHERS, OURS, TEXTBOOK, EngineRow
from benchmarks.inputs import NUM_CLASSES, our_images
from benchmarks.network import scale_down_branches
from benchmarks.settings import Settings, Variant
from benchmarks.timing import REPOSITORY, in_turns, run_measured
from pipeline.models import build
from utils.data.samples import to_float
from utils.inference.outputs import sigmoid
from utils.runtime.device import check_compiler
from utils.runtime.errors import UserError

# The largest difference of a score from the textbook's, by the key of AMP_DTYPES.
BOUNDS = {"off": 1e-5, "bf16": 0.05}


def time_engines(settings: Settings) -> Iterator[EngineRow]:
    """Yield, for each network, batch and precision, a row of times, one of starts and one of memory."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler writes to stderr
    engines = available_engines()
    for model, img_size in settings.sizes.networks:
        photos = load_photos(settings.photos, img_size, max(settings.sizes.engine_batches))
        weights = settings.folder / f"{model}.pth"
        write_weights(weights, model, photos)
        onnx = weights.with_suffix(".onnx")
        if not set(engines).isdisjoint(OTHERS):
            export(weights, model, img_size, onnx)
        for batch_size in settings.sizes.engine_batches:
            for amp in settings.amps:
                work = Work(model, img_size, batch_size, amp, weights, onnx, torch.get_num_threads())
                yield from compare_engines(engines, work, photos[:batch_size], settings)


def available_engines() -> list[str]:
    """Return the engines that this machine can run; say on stderr what the others need."""
    engines = []
    for engine in ENGINES:
        try:
            check_engine(engine)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            engines.append(engine)
    return engines


def check_engine(engine: str) -> None:
    """Raise UserError if an engine needs what is not installed."""
    packages = missing_packages(engine)
    if packages:
        raise UserError(f"{engine}: no {', no '.join(packages)}: pip install -r benchmarks/requirements.txt")
    if engine == COMPILED:
        check_compiler()


def load_photos(photos: list[str], img_size: int, number: int) -> np.ndarray:
    """Return the first photographs, decoded and resized as main.py does it: uint8 (number, 3, S, S)."""
    images = our_images([photos[index % len(photos)] for index in range(number)], img_size, train=False)
    return np.stack([images[0, index, True].image.numpy() for index in range(number)])


def write_weights(path: Path, model: str, photos: np.ndarray) -> None:
    """Write the state dict of an untrained network whose values on these photographs are of ordinary size."""
    torch.manual_seed(0)
    network = build(model, 1, 0.1, NUM_CLASSES, img_size=photos.shape[2])
    scale_down_branches(network)
    measure_statistics(network, photos)
    torch.save(network.state_dict(), path)


def export(weights: Path, model: str, img_size: int, onnx: Path) -> None:
    """Write a network by export.py to an ONNX file."""
    words = ["--load_from", str(weights), "--model", model, "--dataset", "coco", "--img_size", str(img_size)]
    words += ["--dynamic_batch", "--out", str(onnx)]
    run_measured([str(REPOSITORY / "export.py"), *words], weights.parent)


@torch.no_grad()
def measure_statistics(network: nn.Module, photos: np.ndarray) -> None:
    """Give the batch-norms the statistics of these photographs, as training does.

    Without them, the values of an untrained deep network vanish or overflow.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1
    network.train()
    network(to_float(torch.from_numpy(photos), CPU))


def compare_engines(
    engines: list[str], work: Work, photos: np.ndarray, settings: Settings
) -> Iterator[EngineRow]:
    """Time the engines in turns on the same photographs; yield the rows of a network, batch and precision."""
    with contextlib.ExitStack() as stack:
        processes = {
            engine: stack.enter_context(EngineProcess(engine, work, photos))
            for engine in engines
            if computes_in(engine, work.amp)
        }
        turns = in_turns(settings.sizes.engine_rounds, *(process.time for process in processes.values()))
        times = {engine: 1000 * min(turn) / work.batch_size for engine, turn in zip(processes, turns)}
        memory = {engine: process.call(peak_memory) for engine, process in processes.items()}
        fastest = min((engine for engine in OURS if engine in times), key=times.__getitem__)
        shares = processes[fastest].call(profile_shares)
    starts = {engine: process.started.seconds for engine, process in processes.items()}
    scores = {engine: sigmoid(process.started.logits) for engine, process in processes.items()}
    difference = np.max([np.abs(found - scores[TEXTBOOK]) for found in scores.values()])  # NaN stays NaN

    name = f"{work.model}, {work.img_size}×{work.img_size}, batch {work.batch_size}, "
    name += Variant(work.amp).title(CPU)
    goal_engine = GOAL_ENGINES[work.amp]
    same = bool(difference < BOUNDS[work.amp])
    yield EngineRow(name, "ms/image", times, goal_engine, same, f"scores to {difference:.0e}", shares)
    yield EngineRow(name, "s to the first scores", starts)
    yield EngineRow(name, "MiB", memory)


def computes_in(engine: str, amp: str) -> bool:
    """Return whether an engine takes part in a precision: ONNX Runtime has no bf16 on the CPUs of PCs.

    The textbook stays in float32.
    """
    return amp == "off" or engine != "ONNX Runtime"
