"""Small made-up data sets, and a way to run the commands in this process."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import main
from utils import prepare_shapes
from utils.runtime.cli import run_script

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = ["--dataset", "mine", "--model", "resnet18", "--pretrained", "none"]
SHAPES = ["--dataset", "shapes", "--num_workers", "0", "--device", "cpu"]
# A run of seconds; options given later win over these.
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


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script's main() with arguments; returns its exit status and what it wrote."""

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
    """Run a script that must exit with 2, leave no file behind, and say one line with all the given words."""

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
    """An empty folder to run commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
    """A folder to run in that holds a tiny data set shapes: 20 training and 10 test images."""
    folder = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_shapes.main(["--num_train", "20", "--num_test", "10", "--size", "48"])
    return folder


@pytest.fixture
def shapes(shapes_folder, monkeypatch) -> Path:
    """Run in the folder of the tiny data set shapes."""
    monkeypatch.chdir(shapes_folder)
    return shapes_folder


@pytest.fixture(scope="session")
def trained(shapes_folder) -> Path:
    """The folder of a finished run on the tiny data set shapes."""
    folder = shapes_folder / "trained"
    arguments = ["main.py", "--dataset", "shapes", *TINY, "--output_dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shapes_folder)
        patch.setattr(sys, "argv", arguments)
        main.main()
    return folder


def make_own(folder: Path, count: int = 4, classes: tuple[str, ...] = ("a", "b")) -> list[dict]:
    """Write data/mine/ with noise images into a folder; returns the entries of both its label files."""
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
