"""The engines of the stage engines: how each loads a network, and the process in which it computes scores."""

import contextlib
import importlib.util
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import textbook
from benchmarks.engine_table import COMPILED, OURS, PLAIN, TEXTBOOK
from benchmarks.inputs import NUM_CLASSES
from benchmarks.timing import seconds
from pipeline.compiling import CompiledNetwork
from pipeline.network import Network
from utils.checkpoint import read_predictor
from utils.data.samples import to_float
from utils.inference.outputs import to_numpy
from utils.inference.speed_up import speed_up
from utils.runtime.device import autocast, set_up_device

CPU = torch.device("cpu")
TURN_SECONDS = 0.5
# What each engine needs; export.py writes the file of the last two with onnx and onnxscript.
PACKAGES = {
    "ONNX Runtime": ("onnx", "onnxscript", "onnxruntime"),
    "OpenVINO": ("onnx", "onnxscript", "openvino"),
}
# The first kind of work whose words a profiled operator's name contains; all others are "other".
KINDS = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "matrix products": ("addmm", "::mm", "bmm", "matmul", "linear", "attention"),
    "compiler's loops": ("Compiled",),
    "elementwise": (
        *("relu", "clamp", "hardtanh", "gelu", "sigmoid", "add", "mul", "div"),
        *("softmax", "layer_norm", "pool", "mean"),
    ),
    "memory": (
        *("copy", "clone", "contiguous", "cat", "reorder", "pad"),
        *("empty", "resize", "fill", "view", "shape", "strided", "transpose", "permute"),
    ),
}


@dataclass(frozen=True)
class Work:
    """What the engines compute: a network's logits of a batch of photographs.

    model: a key of MODELS. amp: a key of AMP_DTYPES. weights: the file of its state dict.
    onnx: export.py's file of the same network, for batches of any size.
    """

    model: str
    img_size: int
    batch_size: int
    amp: str
    weights: Path
    onnx: Path
    num_threads: int


class Started(NamedTuple):
    """Seconds from the file of weights to the first logits, and the logits (B, C)."""

    seconds: float
    logits: np.ndarray


Compute = Callable[[], np.ndarray]  # -> logits (B, C) of the same photographs at each call


def load_textbook(work: Work, photos: np.ndarray) -> Compute:
    """Load the textbook's network: eager, in NCHW order, and in float32 whatever the precision."""
    ours = read_predictor(work.weights, "coco", work.img_size, model=work.model)
    network = textbook.Network(work.model, 1, 0.1, NUM_CLASSES)
    textbook.copy_weights(network, ours.network)
    network.eval()
    images = torch.from_numpy(photos) / 255

    @torch.no_grad()
    def compute() -> np.ndarray:
        return network(images).numpy()

    return compute


def load_ours(work: Work, photos: np.ndarray, mode: str) -> Compute:
    """Load our network in one of the modes OURS."""
    set_up_device(CPU)
    network = fast_network(work, mode)
    images = to_float(torch.from_numpy(photos).contiguous(memory_format=torch.channels_last), CPU)

    @torch.inference_mode()
    def compute() -> np.ndarray:
        with autocast(CPU, work.amp):
            return to_numpy(network(images))

    return compute


def fast_network(work: Work, mode: str) -> Network:
    """Return our network in one of the modes OURS, made as val.py and demo.py make it."""
    predictor = read_predictor(work.weights, "coco", work.img_size, model=work.model).to(CPU)
    if mode != PLAIN:
        args = Namespace(compile=mode == COMPILED, amp=work.amp, batch_size=work.batch_size)
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
            predictor = speed_up(predictor, args, num_images=work.batch_size)
    network = predictor.runner
    if mode == COMPILED and not isinstance(network, CompiledNetwork):
        raise RuntimeError(f"{work.model} cannot be compiled here; stderr has the reason")
    return network


def load_onnx_runtime(work: Work, photos: np.ndarray) -> Compute:
    """Load export.py's file in ONNX Runtime, for batches of this size alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.num_threads
    options.add_free_dimension_override_by_name("batch", work.batch_size)
    session = onnxruntime.InferenceSession(work.onnx, options, providers=["CPUExecutionProvider"])
    images = as_float32(photos)
    return lambda: session.run(None, {"images": images})[0]


def load_openvino(work: Work, photos: np.ndarray) -> Compute:
    """Load export.py's file in OpenVINO, for batches of this size alone."""
    import openvino

    core = openvino.Core()
    network = core.read_model(work.onnx)
    network.reshape([work.batch_size, 3, work.img_size, work.img_size])
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if work.amp == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": work.num_threads,
    }
    compiled = core.compile_model(network, "CPU", properties)
    request = compiled.create_infer_request()
    images = as_float32(photos)
    return lambda: request.infer([images], share_inputs=True)[0]


def as_float32(photos: np.ndarray) -> np.ndarray:
    """Return photographs (B, 3, S, S) of uint8 as float32 in [0, 1], in NCHW order."""
    return np.ascontiguousarray(photos, np.float32) / 255


LOADERS = {
    TEXTBOOK: load_textbook,
    **{mode: partial(load_ours, mode=mode) for mode in OURS},
    "ONNX Runtime": load_onnx_runtime,
    "OpenVINO": load_openvino,
}


def missing_packages(engine: str) -> list[str]:
    """Return the packages that an engine needs and that are not installed."""
    return [package for package in PACKAGES.get(engine, ()) if importlib.util.find_spec(package) is None]


class EngineProcess:
    """An engine in a process of its own, so that allocators, threads and settings disturb no other engine."""

    def __init__(self, engine: str, work: Work, photos: np.ndarray):
        self.engine = engine
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.started: Started = self.call(start, work, photos)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the engine's name and these arguments returns in its process."""
        return self.pool.submit(function, self.engine, *arguments).result()

    def time(self) -> float:
        """Return the seconds of a call, the mean of a turn."""
        return self.call(time_turn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()


RUNNING: dict[str, tuple[Compute, float]] = {}  # in an engine's process: the engine, and the memory before it


def start(engine: str, work: Work, photos: np.ndarray) -> Started:
    """Load an engine in this process and compute the logits of the photographs once."""
    torch.set_num_threads(work.num_threads)
    memory = read_status("VmRSS")
    begin = time.perf_counter()
    compute = LOADERS[engine](work, photos)
    logits = compute()
    RUNNING[engine] = compute, memory
    return Started(time.perf_counter() - begin, logits)


def time_turn(engine: str) -> float:
    """Return the mean seconds of the calls of a turn, which takes TURN_SECONDS or longer."""
    compute, _ = RUNNING[engine]
    first = seconds(compute)
    if first > TURN_SECONDS:
        return first
    # A short first call does not count, because the other engines have filled the caches.
    num_calls = math.ceil(TURN_SECONDS / first)
    return seconds(lambda: [compute() for _ in range(num_calls)]) / num_calls


def peak_memory(engine: str) -> float:
    """Return the MiB that an engine has added to its process at most; NaN if the system is not Linux."""
    return read_status("VmHWM") - RUNNING[engine][1]


def read_status(name: str) -> float:
    """Return an entry of this process's status in MiB: VmRSS is its memory, VmHWM the most it has had."""
    path = Path("/proc/self/status")
    if not path.exists():
        return math.nan
    entries = dict(line.split(":") for line in path.read_text().splitlines() if line.startswith("Vm"))
    return int(entries[name].split()[0]) / 1024


def profile_shares(engine: str) -> dict[str, float]:
    """Return the share of each kind of work in the time of a call of an engine that is torch's."""
    compute, _ = RUNNING[engine]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        compute()
    times: dict[str, float] = dict.fromkeys([*KINDS, "other"], 0)
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    shares = {kind: taken / total for kind, taken in times.items()}
    return {kind: share for kind, share in shares.items() if share > 0.005}


def kind_of(operator: str) -> str:
    """Return the kind of work of an operator, a key of KINDS or "other"."""
    return next((kind for kind, words in KINDS.items() if any(word in operator for word in words)), "other")
