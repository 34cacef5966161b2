"""Mixed precision, --compile and --sync_bn; what needs a GPU is tested only where there is one."""

import shutil
import sys

import pytest
import torch
from torch import nn

import main
import val
from conftest import SHAPES, TINY
from pipeline import csra
from pipeline.network import Network, make_classifier
from utils.datasets import DATASETS
from utils.label_files import class_names
from utils.run import Run
from utils.runtime.device import choose_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("option", [["--amp", "bf16"], ["--amp", "fp16"], ["--sync_bn"]])
def test_options_that_need_a_gpu_are_refused_early(workdir, fails, option):
    fails(main, "--dataset", "shapes", *TINY, *option, says=[" ".join(option), "GPU", "leave it out"])


def test_val_refuses_mixed_precision_on_the_cpu(trained, shapes, fails):
    fails(val, *SHAPES, "--load_from", trained / "best.pth", "--amp", "fp16", says=["--amp fp16", "GPU"])


def test_pooling_stays_in_float32(monkeypatch):
    """Under autocast the convolution returns half precision; the pooling after it must use float32."""
    head, x = csra.MHA(2, 0.5, 8, 3), torch.randn(2, 8, 20, 20)
    conv2d = csra.F.conv2d
    monkeypatch.setattr(csra.F, "conv2d", lambda *args: conv2d(*args).half())
    logits = head(x)
    assert logits.dtype == torch.float32
    kernel = torch.cat([csra.F.normalize(h.head.weight, dim=1) for h in head.multi_head])
    scores = conv2d(x, kernel).half().double().flatten(2).chunk(2, dim=1)
    expected = sum(csra.residual_attention(s, h.T, h.lam) for s, h in zip(scores, head.multi_head))
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_main_refuses_to_compile_without_a_compiler(workdir, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O")
    fails(main, "--dataset", "shapes", *TINY, "--compile", says=["--compile", "no-such-compiler"])


def test_val_refuses_to_compile_without_a_compiler(trained, shapes, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    fails(val, *SHAPES, "--load_from", trained / "best.pth", "--compile", says=["--compile", "leave"])


class SmallNetwork(Network):
    """A network with few layers, because torch.compile takes seconds for each one."""

    def __init__(self, num_heads: int, lam: float, num_cls: int, img_size: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = make_classifier(num_heads, lam, 8, num_cls)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.normalize(images))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_has_the_same_outputs_and_names(shapes, monkeypatch):
    monkeypatch.setattr(main, "build", lambda model, *options: SmallNetwork(*options))
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *TINY, "--compile"])
    args, _ = main.parse_args()
    model = main.build_model(args, torch.device("cpu")).eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model.forward(images), rtol=1e-3, atol=1e-4)
    assert model._compiled_call_impl is not None
    assert list(model.state_dict()) == list(SmallNetwork(1, 0.1, 8, 40).state_dict())


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


def test_momentum_is_zero_after_a_first_step_that_overflows(monkeypatch):
    """The scaler of fp16 skips such a step; without our zeros, fused SGD then uses uninitialised memory."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes"])
    args, _ = main.parse_args()
    model = main.build_model(args, torch.device("cpu"))
    optimizer, scaler = main.build_optimizer(model, args), torch.amp.GradScaler("cpu")
    before = model.conv1.weight.detach().clone()
    for gradient in (torch.inf, 1.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(model.conv1.weight, before - args.lr * (1 + args.w_d * before))


@needs_gpu
def test_training_steps_do_not_wait_for_the_gpu(shapes, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *TINY, "--batch_size", "4"])
    (args, _), device = main.parse_args(), choose_device("cuda")
    model = main.build_model(args, device)
    loader, _ = main.make_loaders(args, DATASETS["shapes"], device)
    optimizer, scaler = main.build_optimizer(model, args), torch.amp.GradScaler("cuda", enabled=False)
    run = Run(args, class_names("shapes"), model, optimizer, scaler)
    run.save = lambda: None
    forward = model.forward
    steps = iter(range(1000))

    def watched(images: torch.Tensor) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error" if next(steps) % 5 in (1, 2, 3) else "default")
        return forward(images)

    model.forward = watched
    main.train_one_epoch(run, model, loader, device)
    torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_auto_chooses_the_gpu():
    assert choose_device("auto", "bf16").type == "cuda"
