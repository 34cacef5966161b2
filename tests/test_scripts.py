"""The scripts as a user runs them, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY, SHAPES, TINY


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


def test_a_log_has_plain_progress_lines_and_no_bar(shapes_folder, tmp_path):
    options = [
        *SHAPES,
        *TINY,
        "--batch_size",
        "5",
        "--print_freq",
        "3",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    result = run_script("main.py", *options, cwd=shapes_folder)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line for line in result.stdout.splitlines() if line.startswith("epoch ") and "step" in line]
    assert [line.split("  loss")[0] for line in lines] == ["epoch 1/2  step 3/4", "epoch 2/2  step 3/4"]
