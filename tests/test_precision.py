"""Mixed precision, --compile and --sync_bn; what needs a GPU is tested only where there is one."""

import math
import shutil
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

import demo
import main
import val
from helpers import SHAPES, TINY
from pipeline import csra
from pipeline.network import make_classifier
from small_networks import SmallNetwork
from utils.checkpoint import load_model
from utils.data.datasets import DATASETS
from utils.runtime import device, freed_memory
from utils.runtime.device import choose_device
from utils.runtime.errors import UserError
from utils.runtime.progress import ProgressLines
from utils.training import saving
from utils.training.folder import RunFolder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def bf16() -> None:
    """Skip a test on a CPU that does not compute in bfloat16."""
    try:
        device.check_bf16()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def set_cpu(tmp_path_factory, monkeypatch) -> Callable[[str, str], None]:
    """Replace what is known of the CPU: its flags, and the program that tries bfloat16 on it."""

    def call(flags: str, trial: str) -> None:
        cpuinfo = tmp_path_factory.mktemp("cpu") / "cpuinfo"
        cpuinfo.write_text(f"flags\t\t: {flags}\n")
        monkeypatch.setattr(device, "Path", {"/proc/cpuinfo": cpuinfo}.get)
        monkeypatch.setattr(device, "BF16_TRIAL", trial)

    return call


@pytest.mark.parametrize("option", [["--amp", "fp16"], ["--sync_bn"]])
def test_options_that_need_a_gpu_are_refused_early(workdir, fails, option):
    fails(main, "--dataset", "shapes", *TINY, *option, says=[" ".join(option), "GPU", "leave it out"])


def test_val_refuses_mixed_precision_on_the_cpu(trained, shapes, fails):
    fails(val, *SHAPES, "--load_from", trained / "best.pth", "--amp", "fp16", says=["--amp fp16", "GPU"])


@pytest.mark.parametrize(
    ("flags", "trial", "says"),
    [
        ("fpu avx2 avx512f", "pass", ["needs a GPU, or a CPU with avx512_bf16"]),
        ("fpu avx512_bf16", "import os; os.abort()", ["trial on this CPU failed with status -6"]),
        ("fpu amx_bf16", "raise OSError", ["trial on this CPU failed with status 1"]),
    ],
)
def test_bf16_is_refused_on_a_cpu_that_cannot_compute_it(trained, shapes, fails, set_cpu, flags, trial, says):
    set_cpu(flags, trial)
    says = ["--amp bf16", *says, "leave it out"]
    fails(main, "--dataset", "shapes", *TINY, "--amp", "bf16", says=says)
    checkpoint = ["--load_from", trained / "best.pth", "--amp", "bf16"]
    fails(val, *SHAPES, *checkpoint, says=says)
    photo = "data/shapes/images/test/00000.jpg"
    fails(demo, "--img_dir", photo, "--device", "cpu", *checkpoint, says=says)


def test_bf16_is_accepted_on_a_cpu_that_computes_it(set_cpu):
    set_cpu("fpu avx512_bf16", "pass")
    assert choose_device("cpu", "bf16").type == "cpu"


@pytest.mark.slow
def test_training_and_validation_in_bf16_on_a_cpu(bf16, shapes, command, tmp_path):
    folder, options = tmp_path / "run", ["--amp", "bf16"]
    training = command(main, "--dataset", "shapes", *TINY, *options, "--output_dir", folder)
    assert training.status == 0, training.err
    validation = command(val, *SHAPES, "--load_from", folder / "best.pth", *options)
    assert validation.out.splitlines()[-1] in training.out
    model, images = load_model(folder / "best.pth", device="cpu"), torch.rand(4, 3, 40, 40)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    with torch.inference_mode():
        expected = model(images)
        with device.autocast(torch.device("cpu"), "bf16"):
            logits = model(images)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("num_heads", [0, 1, 6])
def test_only_the_convolution_of_the_head_is_in_bf16_on_a_cpu(bf16, num_heads):
    head, x = make_classifier(num_heads, 0.5, 64, 3), torch.randn(2, 64, 20, 20)
    with device.autocast(torch.device("cpu"), "bf16"):
        maps, logits = head.score_maps(x), head(x)
    assert all(torch.equal(scores, scores.bfloat16()) for scores, _ in maps)
    expected = sum(csra.residual_attention(scores.double().flatten(2), T, 0.5) for scores, T in maps)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_settings_of_glibc_turn_ours_off(monkeypatch):
    calls = []
    libc = SimpleNamespace(mallopt=lambda *values: calls.append(values))
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"):
        monkeypatch.delenv(name, raising=False)
    freed_memory.keep_freed_memory()
    assert calls == [(-1, -1), (-4, 0)]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    freed_memory.keep_freed_memory()
    assert len(calls) == 2


def test_pooling_stays_in_float32(monkeypatch):
    """Under autocast the matrix product returns half precision; the pooling after it must use float32."""
    head, x = csra.MHA(2, 0.5, 8, 3), torch.randn(2, 8, 20, 20)
    matmul = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda *args: matmul(*args).half())
    logits = head(x)
    assert logits.dtype == torch.float32
    kernel = torch.cat([csra.F.normalize(h.head.weight, dim=1) for h in head.multi_head])
    scores = csra.F.conv2d(x, kernel).half().double().flatten(2).chunk(2, dim=1)
    expected = sum(csra.residual_attention(s, h.T, head.lam) for s, h in zip(scores, head.multi_head))
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_main_refuses_to_compile_without_a_compiler(workdir, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O")
    fails(main, "--dataset", "shapes", *TINY, "--compile", says=["--compile", "no-such-compiler"])


def test_val_refuses_to_compile_without_a_compiler(trained, shapes, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    fails(val, *SHAPES, "--load_from", trained / "best.pth", "--compile", says=["--compile", "leave"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_has_the_same_outputs_and_names(shapes, monkeypatch):
    monkeypatch.setattr(main, "build", lambda model, *options: SmallNetwork(*options[:3]))
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *TINY, "--compile"])
    args = main.resolve(main.make_parser().parse_args())
    model = main.build_model(args, torch.device("cpu")).eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model.forward(images), rtol=1e-3, atol=1e-4)
    assert model._compiled_call_impl is not None
    assert list(model.state_dict()) == list(SmallNetwork(1, 0.1, 8).state_dict())


@pytest.mark.slow
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
    args = main.resolve(main.make_parser().parse_args())
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
    args, gpu = main.resolve(main.make_parser().parse_args()), choose_device("cuda")
    model = main.build_model(args, gpu)
    loaders = main.make_loaders(args, DATASETS["shapes"], gpu)
    run = main.build_run(args, RunFolder(), model, loaders)
    monkeypatch.setattr(saving, "gather_and_save", lambda run: None)
    forward = model.forward
    steps = iter(range(1000))

    def watched(images: torch.Tensor) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error" if next(steps) % 5 in (1, 2, 3) else "default")
        return forward(images)

    model.forward = watched
    main.train_one_epoch(run, model, loaders.train, ProgressLines(100, first_after=math.inf))
    torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_auto_chooses_the_gpu():
    assert choose_device("auto", "bf16").type == "cuda"
