"""The paper's claim: experiments/claims.py in a tiny form."""

import contextlib
import importlib
import re
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments import claims
from utils.log import read_log
from utils.runtime.cli import UserError

TINY = ["--dataset", "shapes", "--img_size", "64", "--num_workers", "0", "--device", "cpu"]


@pytest.fixture
def tiny(monkeypatch):
    """A few small images, two models, and scripts that run in this process and thread."""

    def script(out: Path, num_threads: int, name: str, *words: object) -> None:
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        with contextlib.chdir(out), monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, words)])
            module.main()

    constants = {"NUM_TRAIN": 20, "NUM_TEST": 10, "IMAGES": ["--size", "64"], "TRAINING": TINY}
    constants |= {"MODELS": {n: claims.MODELS[n] for n in (0, 1)}, "GRID": ["lam=0:1:0.5", "T=1,inf"]}
    constants |= {"ThreadPoolExecutor": lambda jobs: contextlib.nullcontext(SimpleNamespace(map=map))}
    for name, value in (constants | {"script": script}).items():
        monkeypatch.setattr(claims, name, value)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, tiny work is slow while other processes use the cores
    yield
    torch.set_num_threads(num_threads)


def test_claims_prints_a_table_and_keeps_its_runs(tiny, tmp_path, command):
    options = ("--out", tmp_path, "--seeds", 1, "--epochs", 1, "--jobs", 1)
    result = command(claims, *options)
    assert result.status == 0, result.err
    _, _, *rows = result.out[result.out.index("| model |") :].splitlines()
    number = r"\d+\.\d\d ± \d+\.\d\d"
    patterns = [
        rf"\| average pooling \| {number} \| {number} \|",
        rf"\| average pooling, attention added without training \| {number} \| \|",
        rf"\| CSRA, 1 head \| {number} \| {number} \|",
    ]
    assert all(re.fullmatch(*pair) for pair in zip(patterns, rows, strict=True)), rows

    finished = (tmp_path / "runs/heads1_seed0/last.pth").read_bytes()
    claims.train(Namespace(out=tmp_path, epochs=1, jobs=1, lam=0.3), seed=0, num_heads=1)
    assert (tmp_path / "runs/heads1_seed0/last.pth").read_bytes() == finished
    assert len(read_log(tmp_path / "runs/heads1_seed0")) == 1


def test_scripts_run_in_the_folder_and_failures_are_reported(tmp_path):
    claims.script(tmp_path, 1, "utils/prepare_shapes.py", "--num_train", 1, "--num_test", 1)
    assert (tmp_path / "data/shapes/test.json").exists()
    with pytest.raises(UserError, match=r"prepare_shapes\.py --num_train 0 failed: .*'0' is not a whole"):
        claims.script(tmp_path, 1, "utils/prepare_shapes.py", "--num_train", 0)


def test_the_spread_is_that_of_a_sample():
    assert claims.spread([1.0, 3.0]) == "2.00 ± 1.41"
    assert claims.spread([2.0]) == "2.00 ± 0.00"
