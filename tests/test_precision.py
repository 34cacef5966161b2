"""Mixed precision, --compile and --sync_bn: on a GPU where there is one, else what is refused."""

import shutil
import sys

import pytest
import torch

import main
import val
from conftest import SHAPES, TINY
from pipeline import csra
from utils.device import choose_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("option", [["--amp", "bf16"], ["--amp", "fp16"], ["--sync_bn"]])
def test_what_needs_a_gpu_says_so(shapes, fails, option):
    fails(main, "--dataset", "shapes", *TINY, *option, says=[" ".join(option), "GPU", "leave it out"])


def test_val_refuses_mixed_precision_on_the_cpu(trained, shapes, fails):
    fails(val, *SHAPES, "--load_from", trained / "best.pth", "--amp", "fp16", says=["--amp fp16", "GPU"])


def test_pooling_stays_in_float32(monkeypatch):
    """Under autocast the convolution's scores come in half precision: from there on it is float32 again."""
    head, x = csra.MHA(2, 0.5, 8, 3), torch.randn(2, 8, 20, 20)
    conv2d = csra.F.conv2d
    monkeypatch.setattr(csra.F, "conv2d", lambda *args: conv2d(*args).half())
    logits = head(x)
    assert logits.dtype == torch.float32
    kernel = torch.cat([csra.F.normalize(h.head.weight, dim=1) for h in head.multi_head])
    scores = conv2d(x, kernel).half().double().flatten(2).chunk(2, dim=1)
    expected = sum(csra.residual_attention(s, h.T, h.lam) for s, h in zip(scores, head.multi_head))
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_compiling_without_a_compiler_says_so(trained, shapes, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    fails(main, "--dataset", "shapes", *TINY, "--compile", says=["--compile", "no-such-compiler"])
    fails(val, *SHAPES, "--load_from", trained / "best.pth", "--compile", says=["--compile", "leave"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_computes_the_same(shapes, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *TINY, "--compile"])
    args = main.parse_args()
    model = main.build_model(args, torch.device("cpu")).eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model.forward(images), rtol=1e-3, atol=1e-4)
    assert not any("_orig_mod" in name for name in model.state_dict())


@needs_gpu
@pytest.mark.parametrize(
    "options", [[], ["--amp", "bf16"], ["--amp", "fp16"], ["--amp", "bf16", "--compile"]]
)
def test_training_and_validation_on_a_gpu(shapes, command, tmp_path, options):
    run = ["--dataset", "shapes", *TINY, "--device", "cuda", "--output_dir", tmp_path / "run", *options]
    trained = command(main, *run)
    assert trained.status == 0, trained.err
    arguments = [*SHAPES, "--device", "cuda", "--load_from", tmp_path / "run" / "best.pth", *options]
    evaluated = command(val, *arguments)
    assert evaluated.out.splitlines()[-1] in trained.out


@needs_gpu
def test_a_gpu_is_set_up_to_be_fast():
    assert choose_device("auto", "bf16").type == "cuda"
    assert torch.backends.cudnn.benchmark
