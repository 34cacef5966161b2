"""The benchmark: every stage runs, in a tiny form, and notices a version that computes something else."""

import importlib.util
import json
import os
import pickle
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench, commands, engine_loading, engines, gpu, network, scripts, textbook
from benchmarks.engine_table import COMPILED, ENGINES, FOLDED, OTHERS, OURS, PLAIN, TEXTBOOK, EngineRow
from benchmarks.inputs import make_coco, make_photos
from benchmarks.settings import QUICK, Settings, Sizes, Variant
from benchmarks.table import Row
from benchmarks.timing import Usage, in_child, in_turns, run_measured, time_in_turns
from helpers import REPOSITORY, finish, start_preloaded
from pipeline.compiling import CompiledNetwork
from pipeline.csra import MHA
from pipeline.folding import FoldedNetwork
from pipeline.models import build
from pipeline.resnet_csra import ResNet_CSRA
from utils.data.transforms import train_transform
from utils.evaluation import evaluate
from utils.inference.outputs import sigmoid
from utils.inference.predictor import Predictor
from utils.inference.speed_up import speed_up
from utils.runtime import device
from utils.runtime.device import has_compiler
from utils.runtime.errors import UserError
from utils.training.losses import LOSSES

# For each stage, a function that the scripts call, and a wrong one to put in its place.
WRONG = {
    "loader": ("benchmarks.parts.train_transform", lambda *args: train_transform(*args).flip(2)),
    "head": ("benchmarks.parts.MHA", lambda num_heads, lam, *args: MHA(num_heads, lam + 0.1, *args)),
    "metrics": ("benchmarks.parts.evaluate", lambda *args: evaluate(*args) | {"OF1_3": 0.5}),
    "train": ("main.LOSSES", {"bce": lambda logits, targets: LOSSES["bce"](2 * logits, targets)}),
    "val": ("benchmarks.network.sigmoid", lambda logits: sigmoid(1.1 * logits)),
    "demo": (
        "benchmarks.scripts.run_measured",
        lambda words, folder: run_preloaded(raise_lam(words), folder),
    ),
    "commands": (
        "benchmarks.commands.run_measured",
        lambda words, folder: run_preloaded(raise_lam(words), folder),
    ),
    "shapes": ("benchmarks.scripts.train_shapes", lambda settings, amp, seed: 50.0 * (amp == "bf16")),
    "prepare": ("benchmarks.scripts.make_coco", lambda *args: make_coco(*args) | {"another.jpg": {1}}),
}
BF16 = Variant("bf16")
# Stages that have a row for each precision.
IN_PRECISIONS = {"train", "val", "head", "demo", "commands"}


def raise_lam(words: list[str]) -> list[str]:
    """Give demo.py another lambda; leave the textbook's command as it is."""
    return [*words, "--lam", "0.2"] if words[0].endswith("demo.py") else words


def run_preloaded(words: list[str], folder: Path) -> Usage:
    """Stand for run_measured: run a script, or the program after -c, where torch is imported already."""
    program = folder / "program.py"
    if words[0] == "-c":
        program.write_text(words[1])
        words = [program, *words[2:]]
    begin = time.perf_counter()
    status, _, err = finish(start_preloaded(*words, cwd=folder))
    assert status == 0, err
    return Usage(time.perf_counter() - begin, memory=1)


@pytest.fixture(scope="session")
def variants() -> tuple[Variant, ...]:
    """The variants that this CPU can run in a test: float32, and bf16 if it has the instructions."""
    return (Variant(), BF16) if bench.can_use_bf16(torch.device("cpu")) else (Variant(),)


@pytest.fixture
def settings(tmp_path, monkeypatch, variants) -> Iterator[Settings]:
    """Tiny inputs. Training and validation stay in this process, with arguments pickled as for a child."""
    monkeypatch.setattr(scripts, "run_measured", run_preloaded)
    monkeypatch.setattr(engines, "run_measured", run_preloaded)
    monkeypatch.setattr(commands, "run_measured", run_preloaded)
    monkeypatch.setattr(network, "in_child", lambda f, *args: f(*pickle.loads(pickle.dumps(args))))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, tiny work is slow while other processes use the cores
    monkeypatch.setattr(scripts, "SHAPES_TOLERANCE", 30)
    sizes = Sizes(
        depth=50,
        img_size=64,
        scored_images=200,
        coco_images=30,
        coco_boxes=100,
        demo_photos=4,
        shapes=20,
        seeds=1,
        networks=(("resnet50", 64),),
        engine_batches=(2,),
        engine_rounds=1,
        command_network=("resnet50", 64),
        command_photos=(3,),
        command_rounds=1,
        rounds=1,
        long_rounds=1,
    )
    photos = make_photos(tmp_path / "photos", 3)
    yield Settings(tmp_path, photos, variants=variants, batch_size=2, num_steps=1, sizes=sizes)
    torch.set_num_threads(num_threads)


def skip_without_bf16(stage: str, settings: Settings) -> None:
    """shapes and gpu compare bf16 with float32, so that they are empty without it."""
    if stage in ("shapes", "gpu") and BF16 not in settings.variants:
        pytest.skip("needs a CPU with bf16")


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(set(bench.STAGES) - {"gpu", "engines"}))
def test_each_stage_computes_the_same_as_the_textbook(settings, stage):
    skip_without_bf16(stage, settings)
    rows = list(bench.STAGES[stage](settings))
    assert len(rows) >= (len(settings.variants) if stage in IN_PRECISIONS else 1)
    for row in rows:
        assert row.same in (True, None), row.check
        assert min(row.textbook, row.ours) > 0
        assert row.limit is None or row.limit > 0
        assert row.stage in row.format()


@pytest.mark.slow
@pytest.mark.parametrize("stage", WRONG)
def test_each_stage_notices_a_wrong_result(settings, stage, monkeypatch):
    skip_without_bf16(stage, settings)
    monkeypatch.setattr(*WRONG[stage])
    weakest = replace(settings, variants=settings.variants[-1:])  # bf16 has the widest bounds
    assert not all(row.same for row in bench.STAGES[stage](weakest))


@pytest.mark.slow
def test_all_stages_but_one_compare_results():
    assert set(bench.STAGES) - set(WRONG) == {"startup", "gpu", "engines"}  # the last two have tests below


@pytest.mark.slow
def test_the_stage_gpu_measures_on_a_cpu_what_a_cpu_can(settings, monkeypatch):
    skip_without_bf16("gpu", settings)
    monkeypatch.setattr(scripts, "train_shapes", lambda *args: 99.0)  # the stage shapes trains
    settings = replace(settings, variants=(gpu.OFF, gpu.BF16))
    rows = list(gpu.time_gpu(settings))
    names = [row.stage for row in rows]
    for row in rows:
        assert row.same in (True, None), row.check
        assert row.stage in row.format()
    for size in (2, 8):
        for precision in ("float32", "bf16"):
            for stage in ("training", "validation"):
                assert f"{stage}, ResNet-50, 64×64, batch {size}, {precision}" in names
    assert sum(name.startswith(("CSRA", "shapes")) for name in names) == 3
    (profiled,) = (row for row in rows if row.stage.startswith("profile"))
    assert len(profiled.check.split(" %")) == 11
    assert "convolution" in profiled.check


@pytest.mark.slow
def test_a_part_of_the_stage_gpu_that_fails_is_a_wrong_row(settings, monkeypatch):
    for part in ("time_validation", "time_head", "compare_shapes"):
        monkeypatch.setattr(gpu, part, lambda settings: iter(()))

    def time_training(settings: Settings) -> Iterator[Row]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu, "time_training", time_training)
    settings = replace(settings, variants=(gpu.OFF,))
    rows = [row for row in gpu.time_gpu(settings) if row.stage.startswith("time_training")]
    assert [(row.same, row.check) for row in rows] == 2 * [(False, "RuntimeError: no memory")]
    assert "NO: RuntimeError" in rows[0].format()
    monkeypatch.setattr(gpu, "LAST_START", -1)
    assert list(gpu.time_gpu(settings)) == []


def test_a_step_that_waits_for_the_gpu_is_a_wrong_row(settings, monkeypatch):
    def epoch(loader: object) -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(gpu, "our_epoch", lambda *args: (torch.nn.Linear(1, 1), epoch))
    (row,) = gpu.check_syncs(settings)
    assert not row.same
    assert "synchronizing" in row.check


def test_a_fault_on_a_gpu_gives_nan(settings):
    def fails(settings: Settings) -> network.Timed:
        raise RuntimeError("no memory")

    timed = network.run_version(fails, replace(settings, device=torch.device("cuda")))
    assert np.isnan(timed.from_files)
    assert not network.relative_difference(timed.result, np.ones(3)) < 0.5


@pytest.mark.slow
def test_a_wrong_result_ends_the_command_with_an_error(tmp_path, monkeypatch, command):
    make_photos(tmp_path, 1)
    monkeypatch.setattr(bench, "QUICK", replace(QUICK, scored_images=200))
    options = ("metrics", "--quick", "--device", "cpu", "--images", tmp_path, "--out", tmp_path / "out.json")
    result = command(bench, *options)
    assert result.status == 0, result.err
    assert "yes: metrics to" in result.out
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["same"]
    monkeypatch.setattr(*WRONG["metrics"])
    result = command(bench, *options)
    assert result.status == "a stage does not compute what the textbook computes"
    assert "NO: metrics to" in result.out


def test_a_child_process_computes_the_result():
    assert in_child(os.getpid) != os.getpid()


def test_metrics_are_those_of_the_textbook():
    rng = np.random.default_rng(0)
    scores, targets = rng.random((50, 6)), rng.integers(0, 2, (50, 6))
    ours, theirs = evaluate(scores, targets), textbook.evaluate(scores, targets)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs)
    assert theirs.keys() == {name for name in ours if isinstance(ours[name], float)}


@pytest.mark.parametrize(("mode", "use_compile"), [("", None), ("default", True)])
def test_validation_runs_the_network_that_val_makes(settings, monkeypatch, mode, use_compile):
    asked = []

    def speed_up_uncompiled(predictor: Predictor, args: Namespace, num_images: int) -> Predictor:
        asked.append((args.compile, args.amp, args.batch_size, num_images))
        return speed_up(predictor, Namespace(**{**vars(args), "compile": False}), num_images)

    monkeypatch.setattr(network, "speed_up", speed_up_uncompiled)
    variant = Variant(compile=mode)
    options, model = network.our_model(settings, variant)
    assert isinstance(network.validation_network(options, model, variant, 7), FoldedNetwork)
    assert asked == [(use_compile, "off", 2, 7)]


def test_the_textbooks_network_gets_our_weights():
    torch.manual_seed(0)
    ours, plain = ResNet_CSRA(2, 0.1, 5, depth=50).eval(), textbook.Network("resnet50", 2, 0.1, 5).eval()
    network.scale_down_branches(ours)
    textbook.copy_weights(plain, ours)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), plain(images))


def test_prepare_coco_finds_the_synthetic_labels(tmp_path):
    labels = make_coco(tmp_path / "COCO2014", num_images=30, num_boxes=100)
    command = [str(REPOSITORY / "utils" / "prepare_coco.py"), "--data_path", str(tmp_path / "COCO2014")]
    seconds, memory = run_measured(command, tmp_path)
    assert 0 < seconds < 60
    assert memory > 1
    entries = json.loads((tmp_path / "data" / "coco" / "train_coco2014.json").read_text())
    assert len(entries) == 30
    assert [sum(entry["target"]) for entry in entries] == [len(labels[name]) for name in sorted(labels)]


def test_a_mistake_ends_the_command_with_one_line(tmp_path):
    status, _, err = finish(start_preloaded("benchmarks/bench.py", "loader", "--images", tmp_path))
    assert status == 2
    assert err.count("\n") == 1
    assert "no JPEG files there" in err


class EngineInThisProcess(engine_loading.EngineProcess):
    """Stands for the process of an engine, which takes seconds to start."""

    def __init__(self, engine: str, work: engine_loading.Work, photos: np.ndarray):
        self.engine = engine
        self.started = engine_loading.start(engine, *pickle.loads(pickle.dumps((work, photos))))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.engine, *arguments)

    def __exit__(self, *error: object) -> None:
        """Change nothing: there is no process to end."""


@pytest.fixture
def engine_settings(settings, monkeypatch) -> Settings:
    """The stage engines in this process, without the engines that are not ours, in float32."""
    monkeypatch.setattr(engines, "EngineProcess", EngineInThisProcess)
    monkeypatch.setattr(engine_loading, "TURN_SECONDS", 0)
    monkeypatch.setattr(engines, "available_engines", lambda: [TEXTBOOK, PLAIN])
    return replace(settings, variants=(Variant(),))


def test_the_engines_compute_the_same(engine_settings):
    times, starts, memory = engines.time_engines(engine_settings)
    assert times.same is True, times.check
    for row in (times, starts, memory):
        assert row.costs.keys() == {TEXTBOOK, PLAIN}
    assert min(times.costs.values()) > 0
    assert min(starts.costs.values()) > 0
    assert min(memory.costs.values()) >= 0  # so small a network may fit into what the process has already
    assert sum(times.shares.values()) == pytest.approx(1, abs=0.05)
    assert times.shares["convolution"] > 0.2


def test_an_engine_that_computes_something_else_is_a_wrong_row(engine_settings, monkeypatch):
    load = engine_loading.LOADERS[PLAIN]

    def load_wrong(*args: Any) -> engine_loading.Compute:
        compute = load(*args)
        return lambda: 1.001 * compute()

    monkeypatch.setitem(engine_loading.LOADERS, PLAIN, load_wrong)
    times, *_ = engines.time_engines(engine_settings)
    assert times.same is False
    assert "NO: scores to" in times.format()


def test_engines_that_are_not_installed_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    monkeypatch.setattr(engines, "check_compiler", lambda: None)
    assert engines.available_engines() == [engine for engine in ENGINES if engine != "OpenVINO"]
    line = "left out: OpenVINO: no openvino: pip install -r benchmarks/requirements.txt\n"
    assert capsys.readouterr().err == line


def test_bf16_is_left_out_in_one_line_on_a_cpu_without_it(monkeypatch, capsys):
    def refuse() -> None:
        raise UserError("--amp bf16: a trial on this CPU failed")

    monkeypatch.setattr(device, "check_bf16", refuse)
    args = Namespace(amp=None, compile=False)
    assert bench.choose_variants(args, torch.device("cpu")) == (Variant(),)
    line = "bf16 is left out: --amp bf16: a trial on this CPU failed\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("mkldnn::_convolution_pointwise", "convolution"),
        ("aten::native_batch_norm", "batch norm"),
        ("aten::addmm", "matrix products"),
        ("aten::matmul", "matrix products"),
        ("Torch-Compiled Region: 0/1", "compiler's loops"),
        ("aten::clamp", "elementwise"),
        ("aten::add_", "elementwise"),
        ("aten::copy_", "memory"),
        ("aten::as_strided", "memory"),
        ("TorchDynamo Cache Lookup", "other"),
    ],
)
def test_the_time_of_an_operator_counts_for_its_kind(operator, kind):
    assert engine_loading.kind_of(operator) == kind


def test_engines_compares_the_networks_that_are_named(tmp_path):
    words = ["engines", "--device", "cpu", "--networks", "mobilenet_v2"]
    args = bench.make_parser().parse_args(words)
    assert bench.choose_settings(args, tmp_path).sizes.networks == (("mobilenet_v2", 224),)


@pytest.mark.slow
def test_our_engines_are_the_networks_of_val_and_demo(settings):
    (model, img_size), batch_size = settings.sizes.networks[0], 2
    photos = engines.load_photos(settings.photos, img_size, batch_size)
    weights = settings.folder / "model.pth"
    engines.write_weights(weights, model, photos)
    work = engine_loading.Work(model, img_size, batch_size, "off", weights, weights, num_threads=1)
    kinds = {}
    for mode in OURS:
        if mode != COMPILED or has_compiler():
            kinds[mode] = type(engine_loading.fast_network(work, mode))
    expected = {PLAIN: ResNet_CSRA, FOLDED: FoldedNetwork, COMPILED: CompiledNetwork}
    assert kinds == {mode: expected[mode] for mode in kinds}


@pytest.mark.slow
def test_other_engines_load_our_export(settings):
    installed = [engine for engine in OTHERS if not engine_loading.missing_packages(engine)]
    if not installed:
        pytest.skip("needs ONNX Runtime or OpenVINO")
    (model, img_size), batch_size = settings.sizes.networks[0], 2
    photos = engines.load_photos(settings.photos, img_size, batch_size)
    weights, onnx = settings.folder / "model.pth", settings.folder / "model.onnx"
    engines.write_weights(weights, model, photos)
    engines.export(weights, model, img_size, onnx)
    work = engine_loading.Work(model, img_size, batch_size, "off", weights, onnx, num_threads=1)
    expected = EngineInThisProcess(TEXTBOOK, work, photos).started.logits
    for engine in installed:
        logits = EngineInThisProcess(engine, work, photos).started.logits
        assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit_B16_224", "mobilenet_v2"])
def test_the_textbooks_networks_get_our_weights(model):
    torch.manual_seed(0)
    ours, plain = build(model, 1, 0.1, 5, 224).eval(), textbook.Network(model, 1, 0.1, 5).eval()
    textbook.copy_weights(plain, ours)
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), plain(images))


def test_a_row_of_engines_shows_ratios_and_a_missed_goal():
    costs = {TEXTBOOK: 20.0, PLAIN: 14.0, "ours compiled": 12.0, "ONNX Runtime": 10.0, "OpenVINO": 8.0}
    row = EngineRow(
        "a", "ms/image", costs, "ONNX Runtime", True, "scores", {"convolution": 0.9, "other": 0.1}
    )
    cells = [cell.strip() for cell in row.format().split("|")[1:-1]]
    assert cells[:7] == ["a, ms/image", "20", "14", "", "12", "10", "8"]
    assert cells[7:] == [
        "1.50",
        "1.67",
        "1.20 (ONNX Runtime) missed",
        "yes: scores; convolution 90 %, other 10 %",
    ]
    costs["ours compiled"] = 11.5
    assert row.format().split("|")[10].strip() == "1.15 (ONNX Runtime)"
    (*_, goal, remarks, _) = replace(row, goal_engine="", same=None, check="", shares={}).format().split("|")
    assert goal.strip() == remarks.strip() == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_stage_gpu_needs_a_gpu(fails, workdir):
    fails(bench, "gpu", says=["gpu", "CUDA GPU", "cpu"])


def test_a_row_shows_its_costs_and_a_missed_target():
    row = Row("a", "ms/image", 7.0, 2.0, 1.9, "the rest", 3.5, True, "scores")
    assert [cell.strip() for cell in row.format().split("|")[2:-1]] == [
        "7 ms/image (143/s)",
        "2 ms/image (500/s)",
        "3.50",
        "≥ 3.5",
        "95 % (the rest)",
        "yes: scores",
    ]
    for change in ({"textbook": 6.0}, {"ours": 2.01}):
        assert "≥ 3.5 missed" in replace(row, **change).format()


def test_a_row_without_costs_shows_only_what_was_checked():
    cells = [cell.strip() for cell in Row("a", "ms", same=False, check="a fault").format().split("|")]
    assert cells[1:-1] == ["a", "", "", "", "", "", "NO: a fault"]


def test_versions_are_timed_in_turns_and_the_first_round_is_a_warm_up(monkeypatch):
    calls = []
    times = iter([0, 9, 9, 18, 20, 21, 21, 25, 30, 33, 33, 39])  # begin and end of each call
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert time_in_turns(3, lambda: calls.append("a"), lambda: calls.append("b")) == [2, 5]
    assert calls == ["a", "b"] * 3


def test_a_single_round_counts():
    assert in_turns(1, lambda: 1, lambda: 2) == [[1], [2]]
    (taken,) = time_in_turns(1, lambda: None)
    assert taken > 0
