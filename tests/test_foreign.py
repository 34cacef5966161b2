"""Checkpoints that other programs wrote: they load, and no file can make this project run its code."""

import argparse
import json
import os
import struct
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch

import val
from helpers import SHAPES
from pipeline.resnet_csra import ResNet_CSRA
from utils.checkpoint import load_model
from utils.runtime.errors import UserError
from utils.weights import reading
from utils.weights.contents import load_checkpoint
from utils.weights.reading import NumpyType, python_number, read_file


@pytest.fixture
def weights(trained) -> dict[str, torch.Tensor]:
    """Return the state dict of a network that was trained on the tiny data set shapes."""
    return torch.load(trained / "best.pth", weights_only=True)["model"]


def mmpretrain_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    head = "classifier.multi_head."
    return {
        f"head.csra_heads.{key.removeprefix(head)}" if key.startswith(head) else f"backbone.{key}": value
        for key, value in weights.items()
    }


def test_an_mmpretrain_file_gives_the_metrics_of_the_plain_one(weights, shapes, command, tmp_path):
    renamed = mmpretrain_names(weights)
    assert {"backbone.layer1.0.conv1.weight", "head.csra_heads.0.head.weight"} <= renamed.keys()
    meta = {"mmcls_version": "0.23.2", "CLASSES": ("a", "b"), "config": "model = dict()", "epoch": 20}
    torch.save({"meta": meta, "state_dict": renamed}, tmp_path / "mm.pth")
    torch.save(weights, tmp_path / "plain.pth")
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "parallel.pth")
    metrics = {}
    for name in ("mm", "plain", "parallel"):
        options = ["--load_from", tmp_path / f"{name}.pth", "--out", tmp_path / f"{name}.json"]
        result = command(val, *SHAPES, "--img_size", 40, *options)
        assert result.status == 0, result.err
        metrics[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert metrics["mm"] == metrics["parallel"] == metrics["plain"]


def numpy_1_pickle(content: dict) -> bytes:
    """Return the bytes of a file that holds `content`, as a version of NumPy before 2 wrote it."""
    torch.save(content, "numpy.pth", _use_new_zipfile_serialization=False)
    return Path("numpy.pth").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


VALUES = [np.float64(0.5), np.float32(0.25), np.int64(-7), np.uint8(200), np.bool_(True)]


def test_files_with_numpy_numbers_load(weights, workdir):
    numbers = {str(index): value for index, value in enumerate(VALUES)}
    extras = {"best_mAP": numbers, "torch": torch.__version__, "args": argparse.Namespace(lr=np.float64(0.1))}
    torch.save({"state_dict": weights, **extras}, "new.pth")
    Path("old.pth").write_bytes(numpy_1_pickle({"state_dict": weights, **extras}))
    assert b"numpy._core" not in Path("old.pth").read_bytes()
    for name in ("new.pth", "old.pth"):
        assert load_model(name, "shapes").options["model"] == "resnet18"
    config = {"lam": np.float64(0.25), "img_size": np.int64(64), "dataset": "shapes", "values": np.int16(-2)}
    names = [f"class {i}" for i in range(8)]
    torch.save({"model": weights, "config": config, "classes": names, "record": {}}, "own.pth")
    read = load_checkpoint("own.pth")["config"]
    assert (read["lam"], read["img_size"], read["values"]) == (0.25, 64, -2)
    assert not any(isinstance(value, np.generic) for value in read.values())


def test_numpy_numbers_are_read_in_their_byte_order():
    for order in "<>":
        kind = NumpyType("f8", False, True)
        kind.__setstate__((3, order, None, None, None, -1, -1, 0))
        assert python_number(kind, struct.pack(f"{order}d", 0.1)) == 0.1


class Call:
    """Pickles as the call of a function, which unpickling makes."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


SCALAR = np.float64().__reduce__()[0]
NUMBER = np.dtype("f8").__reduce__()[2]
# Read by NumPy itself, those with a changed state make the process crash.
HOSTILE = [
    Call(os.system, ("touch ran",)),
    Call(eval, ("open('ran', 'w')",)),
    Call(np.load, ("file.npy",)),
    Call(SCALAR, (np.dtype("O"), b"12345678")),
    Call(SCALAR, (np.dtype("f8"), b"short")),
    Call(SCALAR, (Call(np.dtype, ("V2000000000",)),)),
    Call(SCALAR, (Call(np.dtype, ("f8", False, True), (*NUMBER[:-1], 63)),)),
    Call(SCALAR, (Call(np.dtype, ("O", False, True), NUMBER), b"12345678")),
    Call(SCALAR, (np.dtype("U2"), b"\xff" * 8)),  # a str that Python cannot print
    Call(SCALAR, (np.dtype("S8"), b"12345678")),
    Call(SCALAR, (np.dtype("c16"), b"12345678" * 2)),
    Call(SCALAR, (argparse.Namespace(code="f8", order="<"), b"12345678")),
    Call(SCALAR, (Call(np.dtype, ("f8", False, True), (3, "<<", *NUMBER[2:])), b"12345678")),
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_file_that_misuses_numpy_is_refused(workdir, value):
    for content in ({"model": {"a": torch.zeros(1)}, "extra": value}, {value: torch.zeros(1)}):
        torch.save(content, "hostile.pth")
        with pytest.raises(UserError, match="hostile.pth is not a checkpoint that can be read safely"):
            load_checkpoint("hostile.pth")
    assert not Path("ran").exists()


def without_mmap(file, map_location, weights_only):
    raise AssertionError("never called: the arguments do not fit")


def broken_number(kind, data):
    return undefined_name  # noqa: F821


BROKEN = reading.known_as(broken_number, "numpy._core.multiarray.scalar")


@pytest.mark.parametrize(
    ("place", "name", "broken", "error"),
    [
        (torch.serialization, "safe_globals", None, TypeError),
        (torch, "load", without_mmap, TypeError),
        (reading, "SAFE", [BROKEN, *reading.SAFE[2:]], NameError),
    ],
)
def test_a_fault_of_the_program_is_not_blamed_on_the_file(workdir, monkeypatch, place, name, broken, error):
    torch.save({"weights": torch.zeros(1), "best_mAP": np.float64(0.5)}, "good.pth")
    read_file(Path("good.pth"))
    monkeypatch.setattr(place, name, broken)
    with pytest.raises(error):
        read_file(Path("good.pth"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(5, "Input/output error"), "good.pth cannot be read: Input/output error"),
        (MemoryError(), "good.pth cannot be read: memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "cannot be read: memory ran out"),
    ],
)
def test_a_disk_or_memory_that_fails_is_named(workdir, monkeypatch, error, says):
    torch.save({"weights": torch.zeros(1)}, "good.pth")
    load = torch.load

    def fail_once(*args, **options):
        monkeypatch.setattr(torch, "load", load)
        raise error

    monkeypatch.setattr(torch, "load", fail_once)
    with pytest.raises(UserError, match=says):
        read_file(Path("good.pth"))


def test_reading_in_threads_leaves_the_settings_of_the_process(workdir):
    torch.save(
        {"weights": torch.zeros(1), "best_mAP": np.float64(0.5), "args": argparse.Namespace()}, "a.pth"
    )
    filters = list(warnings.filters)
    with torch.serialization.safe_globals([argparse.Namespace]):
        before = set(torch.serialization.get_safe_globals())
        with ThreadPool(4) as pool:
            contents = pool.map(read_file, [Path("a.pth")] * 40)
        assert set(torch.serialization.get_safe_globals()) == before
    assert warnings.filters == filters
    assert [content["best_mAP"] for content in contents] == [0.5] * 40


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:torch.quantize_per_tensor")
def test_unusual_tensors_are_refused_before_anything_asks_for_their_shapes(workdir):
    for tensor in (
        torch.eye(3).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.float8_e4m3fn),
        torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
        torch.nested.as_nested_tensor([torch.zeros(2), torch.zeros(3)]),
    ):
        torch.save({"conv1.weight": tensor}, "unusual.pth")
        with pytest.raises(UserError, match="unusual.pth cannot be loaded: conv1.weight is an unusual"):
            load_checkpoint("unusual.pth")


def test_a_fault_of_the_program_while_weights_are_adapted_stays_a_traceback(workdir, weights, monkeypatch):
    torch.save(weights, "good.pth")

    def broken(network, state_dict):
        return undefined_name  # noqa: F821

    monkeypatch.setattr(ResNet_CSRA, "adapt", broken)
    with pytest.raises(NameError):
        load_model("good.pth", "shapes")
