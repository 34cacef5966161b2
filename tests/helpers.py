"""What several test modules share: options of short runs, small data, and other processes."""

import hashlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from preloaded import Preloaded
from utils.data.classes import class_names
from utils.data.datasets import VALUES
from utils.data.label_files import read_labels
from utils.data.labels import IGNORED
from utils.inference import outputs
from utils.runtime.device import has_compiler

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = ["--dataset", "mine", "--model", "resnet18", "--pretrained", "none"]
SHAPES = ["--dataset", "shapes", "--num_workers", "0", "--device", "cpu"]
# A run that takes about a second. Options that follow these override them.
TINY = [
    "--img_size",
    "40",
    "--total_epoch",
    "2",
    "--warmup_epoch",
    "1",
    "--num_workers",
    "0",
    "--device",
    "cpu",
]
# Each epoch has 3 steps of training and 2 of evaluation.
RUN = ["--dataset", "shapes", *TINY, "--batch_size", "8"]
needs_compiler = pytest.mark.skipif(
    not has_compiler(), reason="torch.compile needs a C++ compiler and Python's headers"
)
PATIENCE = 300  # seconds until a process counts as hanging: other programs may keep the CPU busy


def train_in(shapes_folder: Path, name: str, *options: str) -> Path:
    """Run main.py in the folder of the tiny data set; return the folder of the run, `name`."""
    folder = shapes_folder / name
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shapes_folder)
        patch.setattr(sys, "argv", ["main.py", *options, "--output_dir", str(folder)])
        main.main()
    return folder


def start(script: str | Path, *arguments, **options) -> subprocess.Popen:
    """Start a script as a user does."""
    command = [sys.executable, REPOSITORY / script, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), **(pipes | options))


def start_torchrun(processes: int, script: str | Path, *arguments, **options) -> Preloaded | subprocess.Popen:
    """Start a script by torchrun in several processes; all are forks of a process with torch."""
    launcher = ["--standalone", f"--nproc_per_node={processes}", "--run_path", "--start_method=fork"]
    return start_preloaded("tests/torchrun.py", *launcher, REPOSITORY / script, *arguments, **options)


def start_preloaded(
    script: str | Path,
    *arguments,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    alone: bool = False,
    stderr_in_stdout: bool = False,
    files: int | None = None,
) -> Preloaded | subprocess.Popen:
    """Start a script in a process that has imported torch already, and nothing of this project.

    alone: in a group of processes of its own, as a terminal does. files: how many it may have open.
    """
    words = list(map(str, (REPOSITORY / script, *arguments)))
    if sys.platform != "linux":
        limit = (resource.RLIMIT_NOFILE, (files, files))
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env=env,
            start_new_session=alone,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr_in_stdout else subprocess.PIPE,
            text=True,
            preexec_fn=None if files is None else lambda: resource.setrlimit(*limit),
        )
    return Preloaded(
        {
            "words": words,
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "alone": alone,
            "stderr_in_stdout": stderr_in_stdout,
            "files": files,
        }
    )


def start_ranks(processes: int, script: str | Path, *arguments, **options) -> list[Preloaded]:
    """Start a script in several processes that find each other as torchrun's do, without its import of torch.

    The tests of what torchrun itself does, restarts and signals, start it by `start`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start_preloaded(script, *arguments, env=common | {"RANK": str(i), "LOCAL_RANK": str(i)}, **options)
        for i in range(processes)
    ]


def finish_ranks(ranks: list[Preloaded]) -> tuple[int, str, str]:
    """Wait for the end of all processes; return the highest exit status, and what all of them printed."""
    ends = [finish(rank) for rank in ranks]
    statuses, outs, errs = zip(*ends)
    return max(statuses, key=abs), "".join(outs), "".join(errs)


def finish(process: subprocess.Popen | Preloaded) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit status, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


def start_method(name: str) -> dict[str, str]:
    """Return an environment in which Python starts workers by "fork", "forkserver" or "spawn"."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY / "tests" / "start_method"), "START_METHOD": name}


def with_hash(name: str, content: bytes) -> str:
    """Return the name of a file with the start of its content's SHA-256, as torchvision names files."""
    return f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def die(worker: int) -> None:
    """End a DataLoader worker at its start as the system does when memory runs out; a worker_init_fn."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, ended: bool = False) -> None:
    """Wait until a condition is true; kill the process if that takes too long, or if it ends but may not."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if (not ended and process.poll() is not None) or time.monotonic() > deadline:
            raise AssertionError(finish(process))
        time.sleep(0.05)


def make_own(folder: Path, count: int = 4, classes: tuple[str, ...] = ("a", "b")) -> list[dict]:
    """Make a data set data/mine/ of noise images; return the entries of its two label files."""
    rng = np.random.default_rng(0)
    (folder / "data" / "mine").mkdir(parents=True)
    entries = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(path)
        target = [int(index % len(classes) == c) for c in range(len(classes))]
        entries.append({"target": target, "img_path": str(path)})
    for name, content in {"train": entries, "test": entries, "classes": list(classes)}.items():
        (folder / "data" / "mine" / f"{name}.json").write_text(json.dumps(content))
    return entries


def read_targets(path: Path) -> dict[str, list[int]]:
    """Return a label file of a user's data set as {image path: target}, with 99 for an unknown label."""
    labels = read_labels(path, len(class_names(path.parent.name)), VALUES)
    rows = labels.targets.rows()
    return dict(zip(labels.paths, np.where(rows == IGNORED, 99, rows).tolist()))


def assert_same(ours: object, theirs: object) -> None:
    """Compare nested results bit for bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert_same(a, b)
    else:
        assert ours == theirs


def signal_at(patch: pytest.MonkeyPatch, where: str, step: int) -> None:
    """Send SIGTERM to this process at the n-th step of "train" or of "evaluate"."""
    module, steps = {"train": main, "evaluate": outputs}[where], itertools.count(1)
    to_float = module.to_float

    def interrupted(*args):
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return to_float(*args)

    patch.setattr(module, "to_float", interrupted)
