"""What runs a network faster in val.py, demo.py, main.py and the Predictor gives the same scores."""

import copy
import functools
import pickle
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import demo
import val
from helpers import SHAPES, finish_ranks, needs_compiler, start_ranks
from pipeline import compiling
from pipeline.compiling import CompiledNetwork
from pipeline.folding import FoldedNetwork
from small_networks import SmallNetwork
from utils.checkpoint import load_model
from utils.data.samples import to_float
from utils.inference import network_metrics, speed_up
from utils.inference.predictor import LabelSettings, Predictor
from utils.runtime import device
from utils.runtime.limits import COMPILE_FROM

CPU = torch.device("cpu")
NO_COMPILE = Namespace(compile=False, batch_size=2, amp="off")


@pytest.fixture
def predictor(trained, shapes) -> Predictor:
    return load_model(trained / "best.pth", device="cpu")


def photos(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 256, (50, 60, 3), np.uint8) for n in range(count)]


def scores(predictor: Predictor, count: int = 5) -> np.ndarray:
    return np.stack([found.scores for found in predictor.label(photos(count), LabelSettings(batch_size=2))])


def plain_scores(predictor: Predictor, count: int = 5) -> np.ndarray:
    return np.stack(
        [found.scores for photo in photos(count) for found in predictor.label([photo], LabelSettings())]
    )


def test_many_photographs_have_the_scores_of_single_ones(predictor):
    np.testing.assert_allclose(scores(predictor), plain_scores(predictor), rtol=1e-4)


def test_scores_follow_the_weights_of_the_network(predictor):
    before = scores(predictor)
    with torch.no_grad():
        for norm in predictor.network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.bias.add_(0.5)
    after = scores(predictor)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, plain_scores(predictor), rtol=1e-4)


def test_a_faster_predictor_can_be_copied_stored_and_moved(predictor):
    faster = speed_up.speed_up(predictor, NO_COMPILE, 5)
    assert isinstance(faster.runner, FoldedNetwork)
    assert predictor.runner is predictor.network
    expected = scores(predictor)
    for other in (copy.deepcopy(faster), pickle.loads(pickle.dumps(faster)), faster.to("cpu")):
        assert other.runner is other.network
        np.testing.assert_allclose(scores(other), expected, rtol=1e-5)


def test_main_evaluates_the_present_weights(predictor, monkeypatch):
    networks = []
    monkeypatch.setattr(network_metrics, "compute_outputs", lambda network, *_: networks.append(network))
    monkeypatch.setattr(network_metrics, "evaluate_scores", lambda *_: None)
    monkeypatch.setattr(network_metrics, "LogitScores", lambda _: None)
    loader = SimpleNamespace(dataset=SimpleNamespace(labels=None))
    network = predictor.network
    images = torch.rand(2, 3, 40, 40)
    for _ in range(2):
        network_metrics.evaluate_model(network.train(), loader, CPU)
        assert isinstance(networks[-1], FoldedNetwork)
        with torch.inference_mode():
            torch.testing.assert_close(networks[-1](images), network(images), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            network.conv1.weight.mul_(1.5)


def test_only_a_large_job_on_a_cpu_compiles(monkeypatch):
    monkeypatch.setattr(speed_up, "has_compiler", lambda: True)
    assert speed_up.repays_compiling(CPU, COMPILE_FROM)
    assert not speed_up.repays_compiling(CPU, COMPILE_FROM - 1)
    assert not speed_up.repays_compiling(torch.device("cuda"), COMPILE_FROM)
    monkeypatch.setattr(speed_up, "has_compiler", lambda: False)
    assert not speed_up.repays_compiling(CPU, COMPILE_FROM)


def test_a_compiler_is_there_only_with_pythons_headers(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler -O")
    assert not device.has_compiler()
    monkeypatch.setenv("CXX", "python3" if shutil.which("python3") else "sh")
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    assert not device.has_compiler()
    (tmp_path / "Python.h").touch()
    assert device.has_compiler()


@pytest.fixture
def no_inductor(monkeypatch):
    """Let torch.compile leave a network's features as they are; what it was given is in the list."""
    given = []
    monkeypatch.setattr(compiling.torch, "compile", lambda features: [given.append(features), features][1])
    return given


def test_small_batches_are_padded(predictor, no_inductor):
    sizes = []
    network = predictor.network
    features = network.features
    network.features = lambda images: [sizes.append(len(images)), features(images)][1]
    compiled = CompiledNetwork(network, batch_size=4).eval()
    images = torch.rand(3, 3, 40, 40)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), network(images))
    assert sizes == [4, 3]


def test_val_and_demo_say_how_they_run_the_network(trained, shapes, command, no_inductor, monkeypatch):
    monkeypatch.setattr(speed_up, "has_compiler", lambda: True)
    monkeypatch.setattr(speed_up, "COMPILE_FROM", 2)
    checkpoint = ["--load_from", trained / "best.pth", "--device", "cpu"]
    for script, words in ((val, SHAPES), (demo, ["--img_dir", "data/shapes/images/test"])):
        result = command(script, *words, *checkpoint)
        assert result.status == 0, result.err
        assert result.out.count("network: ") == 1
        words_of_compiled = "compiled, which takes up to a few minutes; --no-compile goes without"
        assert f"network: batch norm folded, {words_of_compiled}\n" in result.out
        plain = command(script, *words, *checkpoint, "--no-compile")
        expected = result.out.replace(words_of_compiled, "not compiled")
        assert plain.out.replace(", no compile", "") == expected


def test_a_network_without_batch_norm_is_said_to_run_as_trained(predictor, capsys):
    predictor.network = SmallNetwork(1, 0.1, 2, has_norm=False).eval()
    faster = speed_up.speed_up(predictor, NO_COMPILE, 5)
    assert faster.runner is predictor.network
    assert capsys.readouterr().out == "network: as trained, not compiled\n"


def test_a_compiler_that_fails_is_done_without(trained, shapes, command, monkeypatch):
    def broken(features):
        def fail(images):
            raise RuntimeError("no space left\nfor the code")

        return fail

    monkeypatch.setattr(compiling.torch, "compile", broken)
    monkeypatch.setattr(device, "check_compiler", lambda: None)
    result = command(val, *SHAPES, "--load_from", trained / "best.pth", "--device", "cpu", "--compile")
    assert result.status == 0
    (line,) = [line for line in result.err.splitlines() if "torch.compile" in line]
    assert line.startswith("torch.compile failed, going on without it: RuntimeError: no space left")
    plain = command(val, *SHAPES, "--load_from", trained / "best.pth", "--device", "cpu")
    assert result.out.splitlines()[-1] == plain.out.splitlines()[-1]


@pytest.mark.slow
def test_all_processes_do_without_a_compiler_that_fails_in_one(trained, shapes, command, tmp_path):
    options = [*SHAPES, "--load_from", trained / "best.pth", "--batch_size", 4, "--save_scores"]
    ranks = start_ranks(2, "tests/failing_compiler.py", *options, tmp_path / "two.npz", "--compile")
    assert command(val, *options, tmp_path / "one.npz").status == 0
    status, _, err = finish_ranks(ranks)
    assert status == 0, err
    assert err.count("torch.compile failed, going on without it: RuntimeError: no space left\n") == 1
    assert err.count("torch.compile failed") == 1
    np.testing.assert_allclose(
        saved_scores(tmp_path / "two.npz"), saved_scores(tmp_path / "one.npz"), rtol=1e-4
    )


def saved_scores(file: Path) -> np.ndarray:
    with np.load(file) as content:
        return content["scores"]


@pytest.mark.parametrize("option", ["--no-compile", "--compile"])
def test_val_takes_bf16_on_a_cpu(trained, shapes, command, tmp_path, no_inductor, monkeypatch, option):
    monkeypatch.setattr(device, "check_bf16", lambda: None)  # any CPU computes it, though most do so slowly
    monkeypatch.setattr(device, "check_compiler", lambda: None)
    options = [*SHAPES, "--load_from", trained / "best.pth", option, "--save_scores"]
    assert command(val, *options, tmp_path / "float32.npz").status == 0
    result = command(val, *options, tmp_path / "bf16.npz", "--amp", "bf16")
    assert result.status == 0, result.err
    difference = np.abs(saved_scores(tmp_path / "bf16.npz") - saved_scores(tmp_path / "float32.npz")).max()
    assert 0 < difference < 0.02


@pytest.mark.parametrize("batch_size", [1, 4])
def test_only_the_first_batch_is_compiled(predictor, monkeypatch, batch_size):
    """The others may come with other strides, and the last one is smaller."""
    counter = CompileCounter()
    monkeypatch.setattr(compiling.torch, "compile", functools.partial(torch.compile, backend=counter))
    network = predictor.network = SmallNetwork(1, 0.1, 2).eval()
    options = Namespace(compile=True, batch_size=batch_size, amp="off")
    faster = speed_up.speed_up(predictor, options, 5).runner
    assert counter.frame_count == 1
    pixels = torch.randint(256, (5, 3, 40, 40), dtype=torch.uint8)
    strided = [pixels.to(memory_format=form) for form in (torch.contiguous_format, torch.channels_last)]
    with torch.inference_mode():
        for images in (*strided, pixels.flip(3), pixels.transpose(2, 3)):
            for batch in to_float(images, CPU).split(batch_size):
                torch.testing.assert_close(faster(batch), network(batch))
    assert counter.frame_count == 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("batch_size", "amp", "tolerance"), [(1, "off", 1e-4), (2, "off", 1e-4), (2, "bf16", 0.05)]
)
def test_compiled_scores_are_those_of_the_network(predictor, capsys, batch_size, amp, tolerance):
    predictor.network = SmallNetwork(1, 0.1, len(predictor.classes)).eval()
    options = Namespace(compile=True, batch_size=batch_size, amp=amp)
    faster = speed_up.speed_up(predictor, options, 5)
    assert isinstance(faster.runner, CompiledNetwork)
    settings = LabelSettings(batch_size=batch_size, amp=amp)
    found = np.stack([prediction.scores for prediction in faster.label(photos(5), settings)])
    np.testing.assert_allclose(found, plain_scores(predictor), rtol=tolerance)
    assert "failed" not in capsys.readouterr().err
