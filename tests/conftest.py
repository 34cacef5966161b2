"""Small random data sets, and ways to run the scripts in this process or in others."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import main
from utils import prepare_shapes
from utils.runtime.cli import run_script

# One thread is fastest for such small images. Sums in different processes then have the same order.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
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


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script's main() with arguments; return its exit status, stdout and stderr."""

    def call(script: ModuleType, *arguments) -> SimpleNamespace:
        name = Path(script.__file__).name
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        try:
            run_script(script.main)
            status = 0
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return call


@pytest.fixture
def fails(command):
    """Run a script that must exit with 2, write no file, and print one line that contains all of `says`."""

    def call(script: ModuleType, *arguments, says: list[str]) -> None:
        before = sorted(Path().rglob("*"))
        result = command(script, *arguments)
        assert sorted(Path().rglob("*")) == before
        assert result.status == 2, result.err
        assert len(result.err.splitlines()) == 1, result.err
        assert "Traceback" not in result.err
        for word in says:
            assert str(word) in result.err

    return call


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
    """Make a folder with a tiny data set shapes: 20 training and 10 test images."""
    folder = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_shapes.main(["--num_train", "20", "--num_test", "10", "--size", "48"])
    return folder


@pytest.fixture
def shapes(shapes_folder, monkeypatch) -> Path:
    """Change to the folder of the tiny data set shapes."""
    monkeypatch.chdir(shapes_folder)
    return shapes_folder


def train_in(shapes_folder: Path, name: str, *options: str) -> Path:
    """Run main.py in the folder of the tiny data set; return the folder of the run, `name`."""
    folder = shapes_folder / name
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shapes_folder)
        patch.setattr(sys, "argv", ["main.py", *options, "--output_dir", str(folder)])
        main.main()
    return folder


@pytest.fixture(scope="session")
def trained(shapes_folder) -> Path:
    """Train on the tiny data set shapes with batches of 16; return the folder of the run."""
    return train_in(shapes_folder, "trained", "--dataset", "shapes", *TINY)


@pytest.fixture(scope="session")
def uninterrupted(shapes_folder) -> Path:
    """Train with the options RUN and without a stop; return the folder of the run."""
    return train_in(shapes_folder, "uninterrupted", *RUN)


@pytest.fixture
def finished(uninterrupted, shapes, tmp_path) -> Path:
    """Copy the uninterrupted run, for tests that change it."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def start(processes: int, script: str, *arguments, **options) -> subprocess.Popen:
    """Start a script in one process, or by torchrun in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), REPOSITORY / script, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), **pipes, **options)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit status, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until a running process makes a condition true; kill the process if it fails to."""
    deadline = time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
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
