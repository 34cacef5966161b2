"""Small random data sets, and ways to run the scripts in this process or in others."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from file_server import FileServer
from helpers import REPOSITORY, RUN, TINY, train_in
from narrow import WIDE, use_narrow_resnet18
from utils import prepare_shapes
from utils.runtime.script import run_script

# One thread is fastest for such small images. Sums in different processes then have the same order.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A shell lets background jobs ignore SIGINT, and so would the commands that tests start from such a job.
signal.signal(signal.SIGINT, signal.default_int_handler)
use_narrow_resnet18()
os.fsync = lambda file: None  # what tests write need not survive a power cut


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
        assert Path.cwd() != REPOSITORY, "other tests write into the repository: use the fixture workdir"
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


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Make torch.hub's folder an empty one; return where its files go."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(monkeypatch) -> Iterator[FileServer]:
    """Start a server on a loopback address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files = FileServer()
    yield files
    files.close()


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


@pytest.fixture(scope="session")
def trained(shapes_folder) -> Path:
    """Train on the tiny data set shapes with batches of 16; return the folder of the run."""
    return train_in(shapes_folder, "trained", "--dataset", "shapes", *TINY)


@pytest.fixture(scope="session")
def trained_wide(shapes_folder) -> Path:
    """Train a whole ResNet-18 for commands that run as a user runs them; return the folder of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models.resnet18", WIDE)
        return train_in(shapes_folder, "wide", "--dataset", "shapes", *TINY, "--total_epoch", "1")


@pytest.fixture(scope="session")
def uninterrupted(shapes_folder) -> Path:
    """Train with the options RUN and without a stop; return the folder of the run."""
    return train_in(shapes_folder, "uninterrupted", *RUN)


@pytest.fixture
def finished(uninterrupted, shapes, tmp_path) -> Path:
    """Copy the uninterrupted run, for tests that change it."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))
