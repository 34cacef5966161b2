"""The scripts as a user runs them: in separate processes, from another folder."""

import subprocess
import sys

import pytest

import demo
import export
import main
import val
from conftest import REPOSITORY, SHAPES, TINY, finish, start


@pytest.mark.parametrize(
    "script", ["utils/prepare_voc.py", "utils/prepare_coco.py", "utils/prepare_shapes.py"]
)
def test_preparers_run_without_torch(tmp_path, script):
    (tmp_path / "torch.py").write_text("raise ImportError('the preparers must not import torch')")
    for option, expected in (("--help", (0, 0)), ("--nonsense", (2, 1))):
        command = [sys.executable, REPOSITORY / script, option]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stderr.count("\n")) == expected, result.stderr


@pytest.mark.parametrize("script", [main, val, demo, export])
def test_help_lists_the_options(command, script):
    result = command(script, "--help")
    assert (result.status, result.err) == (0, "")
    assert "--img_size" in result.out


def test_scripts_print_plain_progress_lines_and_nothing_to_stderr(shapes_folder, trained, tmp_path):
    options = [*TINY, "--batch_size", 5, "--print_freq", 3, "--output_dir", tmp_path / "run"]
    training = start(1, "main.py", *SHAPES, *options, cwd=shapes_folder)
    validation = start(1, "val.py", *SHAPES, "--load_from", trained / "best.pth", cwd=shapes_folder)
    status, out, err = finish(training)
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("epoch ") and "step" in line]
    assert [line.split("  loss")[0] for line in lines] == ["epoch 1/2  step 3/4", "epoch 2/2  step 3/4"]
    status, out, err = finish(validation)
    assert (status, err) == (0, "")
    assert "mAP" in out
