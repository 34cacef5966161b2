"""The scripts as a user runs them: in separate processes, from another folder."""

import os
import subprocess
import sys

import pytest

import demo
import export
import main
import val
from helpers import REPOSITORY, SHAPES, TINY, finish, start, start_preloaded


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["utils/prepare_voc.py", "utils/prepare_coco.py", "utils/prepare_shapes.py"]
)
def test_preparers_run_without_torch(tmp_path, script):
    (tmp_path / "torch.py").write_text("raise ImportError('the preparers must not import torch')")
    for option, expected in (("--help", (0, 0)), ("--nonsense", (2, 1))):
        command = [sys.executable, REPOSITORY / script, option]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stderr.count("\n")) == expected, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["main.py", "val.py", "demo.py", "export.py", "benchmarks/bench.py", "experiments/claims.py"]
)
def test_commands_wait_passively_unless_the_user_says_otherwise(tmp_path, script):
    """Replace torch, whose OpenMP reads the variables at its import, by a module that shows them."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    (tmp_path / "torch.py").write_text(f"import os; raise ImportError([os.environ.get(n) for n in {names}])")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = str(tmp_path)
    for own_values, seen in (
        ({}, ["PASSIVE", "10000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
    ):
        command = [sys.executable, REPOSITORY / script, "--help"]
        result = subprocess.run(command, env=environment | own_values, capture_output=True, text=True)
        assert result.stderr.splitlines()[-1] == f"ImportError: {seen}", result.stderr


@pytest.mark.slow
def test_the_library_leaves_the_environment_as_it_is(tmp_path):
    program = "import os; before = dict(os.environ); import pipeline.models, utils.checkpoint, hubconf; "
    program += "print('OMP_WAIT_POLICY' in os.environ, os.environ == before)"
    script = tmp_path / "script.py"
    script.write_text(program)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    _, out, err = finish(start_preloaded(script, env=environment))
    assert out == "False True\n", err


@pytest.mark.parametrize("script", [main, val, demo, export])
def test_help_lists_the_options(command, script):
    result = command(script, "--help")
    assert (result.status, result.err) == (0, "")
    assert "--img_size" in result.out


@pytest.mark.slow
def test_scripts_print_plain_progress_lines_and_nothing_to_stderr(shapes_folder, trained_wide, tmp_path):
    options = [*TINY, "--batch_size", 5, "--print_freq", 3, "--output_dir", tmp_path / "run"]
    training = start("main.py", *SHAPES, *options, cwd=shapes_folder)
    validation = start("val.py", *SHAPES, "--load_from", trained_wide / "best.pth", cwd=shapes_folder)
    status, out, err = finish(training)
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("epoch ") and "step" in line]
    steps = [line.split("  loss")[0] for line in lines]
    assert steps == ["epoch 1/2  step 1/4", "epoch 1/2  step 3/4", "epoch 2/2  step 3/4"]
    status, out, err = finish(validation)
    assert (status, err) == (0, "")
    assert "mAP" in out


RECIPES = """
    --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20
    --num_heads 6 --lam 0.5 --dataset coco --num_cls 80
    --num_heads 4 --lam 0.5 --dataset coco --num_cls 80
    --model vit_B16_224 --img_size 224 --num_heads 1 --lam 0.3 --dataset wider --num_cls 14
    --model vit_L16_224 --img_size 224 --num_heads 1 --lam 0.3 --dataset wider --num_cls 14
"""
CUT_RECIPES = """
    --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20 --cutmix CutMix_ResNet101.pth
    --num_heads 6 --lam 0.4 --dataset coco --num_cls 80 --cutmix CutMix_ResNet101.pth
"""
LABEL = "--model resnet101 --num_heads 1 --lam 0.1 --dataset voc07 --load_from FILE.pth --img_dir DIR"
COMMANDS = [
    *((main, recipe) for recipe in (RECIPES + CUT_RECIPES).strip().splitlines()),
    *((val, f"{recipe} --load_from FILE.pth") for recipe in RECIPES.strip().splitlines()),
    (demo, LABEL),
    (demo, LABEL + " --num_cls 20"),
]


@pytest.mark.parametrize(("script", "words"), [command for command in COMMANDS if command[1].strip()])
def test_the_commands_of_the_authors_readme_are_understood(workdir, monkeypatch, script, words):
    monkeypatch.setattr(sys, "argv", [script.__name__, *words.split()])
    parse = {
        main: lambda: main.resolve(main.make_parser().parse_args()),
        val: lambda: val.parse_args()[1],
        demo: demo.parse_args,
    }[script]
    args = parse()
    given = words.split()
    for option, value in zip(given[::2], given[1::2], strict=True):
        assert str(getattr(args, option.removeprefix("--"))) in (value, f"['{value}']")
