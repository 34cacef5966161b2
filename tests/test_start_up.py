"""What commands and load_model leave out, so that they start quickly."""

import subprocess
import sys

import pytest
import torch

from helpers import REPOSITORY
from pipeline.models import BuildOptions, build
from utils.runtime import torchvision_alone
from utils.weights.building import ZerosForRandomNumbers, build_network
from utils.weights.fitting import first_not_finite

SHOW_SLOW_MODULES = """
import sys
import main, val, demo, export
print(sorted({"torch._dynamo", "sympy", "timm", "onnx"} & {*sys.modules}))
"""
USE_REAL_MODULE = """
import utils.runtime.torchvision_alone as alone
import torch, torchvision
import torch._dynamo.utils as real
assert not isinstance(real, alone.StandIn)
assert alone.is_compile_supported("cpu") == real.is_compile_supported("cpu")
assert torch.compile(torch.nn.Identity(), backend="eager")(torch.ones(1)) == 1
boxes = torch.tensor([[0, 0, 0, 4, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 1) == 1
"""


def run_code(code: str) -> str:
    """Run code in a new process of Python; return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_commands_import_no_compiler():
    assert run_code(SHOW_SLOW_MODULES) == "[]\n"


@pytest.mark.slow
def test_torch_compile_and_torchvision_work_after_the_stand_in():
    run_code(USE_REAL_MODULE)


def test_the_stand_in_gives_all_else_of_the_real_module(monkeypatch):
    stand_in = torchvision_alone.StandIn(torchvision_alone.REPLACED)
    monkeypatch.setitem(sys.modules, torchvision_alone.REPLACED, stand_in)
    assert callable(stand_in.counters.keys)
    assert sys.modules[torchvision_alone.REPLACED] is not stand_in


def test_the_stand_in_stays_away_where_the_real_module_is(monkeypatch):
    real = object()
    monkeypatch.setitem(sys.modules, torchvision_alone.REPLACED, real)
    torchvision_alone.import_torchvision()
    assert sys.modules[torchvision_alone.REPLACED] is real


@pytest.mark.slow
def test_the_library_does_without_the_stand_in():
    code = "import sys, utils.checkpoint; print('utils.runtime.torchvision_alone' in sys.modules)"
    assert run_code(code) == "False\n"


@pytest.mark.parametrize("model", ["resnet18", "vit_B16_224", "mobilenet_v2", "swin_t", "googlenet"])
def test_a_network_to_be_loaded_draws_no_random_numbers(model):
    state = torch.get_rng_state()
    with ZerosForRandomNumbers():
        network = build(model, num_heads=1, lam=0.1, num_cls=3, img_size=64)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.classifier.multi_head[0].head.weight.count_nonzero() == 0


def test_a_network_to_be_loaded_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    options = BuildOptions(model="mobilenet_v2", num_heads=1, num_cls=3, img_size=64, lam=0.1)
    assert build_network(options, "imagenet").normalization == "imagenet"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values_whose_sum_overflows_are_finite(dtype):
    largest = torch.full((4,), torch.finfo(dtype).max, dtype=dtype)
    assert first_not_finite({"a": largest, "b": torch.tensor([1, 2])}) is None
    for value in (torch.inf, -torch.inf, torch.nan):
        broken = largest.clone()
        broken[2] = value
        assert first_not_finite({"a": largest, "b": broken}) == "b"


def test_opposite_infinities_are_found():
    assert first_not_finite({"a": torch.tensor([torch.inf, -torch.inf])}) == "a"
