"""The scripts as a user runs them, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY, SHAPES
from utils.runtime.progress import LogLines


def run_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    script, *rest = arguments
    command = [sys.executable, str(REPOSITORY / script), *rest]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "script", ["utils/prepare_voc.py", "utils/prepare_coco.py", "utils/prepare_shapes.py"]
)
def test_preparers_run_as_scripts_and_without_torch(tmp_path, script):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not to be imported')")
    result = run_script(script, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run_script(script, "--nonsense", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_scripts_run_from_another_folder_and_keep_stderr_clean(shapes_folder, trained):
    result = run_script("val.py", *SHAPES, "--load_from", str(trained / "best.pth"), cwd=shapes_folder)
    assert (result.returncode, result.stderr) == (0, "")
    result = run_script("main.py", "--num_heads", "3", cwd=shapes_folder)
    assert result.returncode == 2
    assert result.stderr.startswith("main.py: error: argument --num_heads")
    assert result.stderr.count("\n") == 1


def test_progress_in_a_log_is_plain_lines(capsys, monkeypatch):
    with LogLines(total=4, desc="epoch 1/2", unit="img", leave=False) as bar:
        bar.mininterval = 0
        for _ in range(4):
            bar.update()
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 5
    assert all(line.startswith("epoch 1/2") for line in lines[:-1])
    assert "\r" not in "".join(lines)
