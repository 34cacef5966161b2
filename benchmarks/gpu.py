"""The stage gpu: all that is to be known about one CUDA GPU, in the 8 minutes of a lent machine."""

import itertools
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import profile

from benchmarks.network import (
    first_batch,
    in_memory,
    our_epoch,
    time_training,
    time_validation,
    training_loader,
)
from benchmarks.parts import time_head
from benchmarks.scripts import compare_shapes
from benchmarks.settings import Settings, Variant
from benchmarks.table import Row
from benchmarks.timing import synchronize

LAST_START = 390  # seconds after which no part starts, so that the stage ends within 8 minutes
OFF = Variant()
BF16 = Variant("bf16")
FP16 = Variant("fp16")
COMPILED = Variant("bf16", "default")
GRAPHS = Variant("bf16", "reduce-overhead")
ALL = (OFF, BF16, FP16, COMPILED, GRAPHS)


def time_gpu(settings: Settings) -> Iterator[Row]:
    """Yield the rows of all parts, the most important first; a part that fails gives a row that says so."""
    large = replace(settings, batch_size=4 * settings.batch_size, num_steps=max(1, settings.num_steps // 2))
    parts = [
        (time_training, settings, (OFF, BF16, COMPILED)),
        (time_validation, settings, (OFF, BF16, COMPILED)),
        (time_head, settings, (OFF, BF16)),
        (check_syncs, settings, (BF16,)),
        (profile_training, settings, (BF16,)),
        (compare_shapes, settings, (OFF, BF16, FP16)),
        (time_training, large, (OFF, BF16, COMPILED)),
        (time_validation, large, (OFF, BF16, COMPILED)),
        (time_training, settings, (GRAPHS,)),
        (time_validation, settings, (GRAPHS,)),
    ]
    start = time.perf_counter()
    for part, sizes, wanted in parts:
        variants = tuple(variant for variant in wanted if variant in settings.variants)
        if not variants:
            continue
        titles = "; ".join(variant.title(settings.device) for variant in variants)
        name = f"{part.__name__}, batch {sizes.batch_size}: {titles}"
        if time.perf_counter() - start > LAST_START:
            print(f"left out, because the time is over: {name}", file=sys.stderr)
            continue
        try:
            yield from part(replace(sizes, variants=variants))
        except Exception as error:  # noqa: BLE001 (a fault of one part must not lose the others' rows)
            traceback.print_exc()
            yield Row(name, "", same=False, check=f"{type(error).__name__}: {error}")


def check_syncs(settings: Settings) -> Iterator[Row]:
    """Train an epoch in which PyTorch raises an error if a step waits for the GPU."""
    model, epoch = our_epoch(settings, settings.variants[0])
    forward = model.forward
    steps = itertools.count()

    def set_mode(mode: str) -> None:
        if settings.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def watched(images: Tensor) -> Tensor:
        if next(steps) == 2:  # the first steps choose algorithms
            set_mode("error")
        return forward(images)

    model.forward = watched
    fault = ""
    try:
        epoch(training_loader(settings))
    except RuntimeError as error:
        fault = f": {error}"
    finally:
        set_mode("default")
    check = f"{next(steps)} steps{fault}"
    yield Row("training steps do not wait for the GPU", "", same=not fault, check=check)


def profile_training(settings: Settings) -> Iterator[Row]:
    """Name the ten operators that take most of a training step on data in memory."""
    device = settings.device
    _, epoch = our_epoch(settings, settings.variants[0])
    loader = training_loader(settings)
    memory = in_memory(loader, first_batch(loader, device), num_steps=min(10, len(loader)))
    epoch(memory)
    with profile() as profiler:  # of the CPU, and of a GPU if there is one
        epoch(memory)
        synchronize(device)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # Kernels have events of their own, which count the time of their operators again.
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    events.sort(key=lambda event: getattr(event, kind), reverse=True)
    total = sum(getattr(event, kind) for event in events)
    top = [f"{event.key} {100 * getattr(event, kind) / total:.1f} %" for event in events[:10]]
    name = f"profile of a training step, batch {settings.batch_size}, {settings.variants[0].title(device)}"
    yield Row(name, "ms", ours=total / 1000 / len(memory), check=", ".join(top))
