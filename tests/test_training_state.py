"""The state of a run as data: what is saved, what is refused before anything is loaded, and who gets it."""

import copy
import json
import sys

import pytest
import torch

import broadcast_memory
import main
from helpers import assert_same, finish_ranks, start_ranks
from utils.runtime.errors import UserError
from utils.training.restoring import share_among
from utils.training.resumable import check_resumable
from utils.training.resume_options import saved_options
from utils.training.seeds import step_seed

COMMANDS = ["--dataset", "shapes", "--img_size", "40", "--batch_size", "8", "--device", "cpu"]


@pytest.fixture
def saved(uninterrupted) -> dict:
    """Return the content of last.pth of a run that ended."""
    return torch.load(uninterrupted / "last.pth", weights_only=True)


def expected_of(saved: dict) -> dict:
    """Return what a process of the same run would save."""
    expected = copy.deepcopy(saved)
    (own_buffers,) = expected.pop("buffers")
    return {**expected, "own_buffers": own_buffers}


def test_a_state_restores_what_it_saved(shapes, saved):
    args = main.resolve(main.make_parser().parse_args(COMMANDS))
    state = main.build_state(main.build_model(args, torch.device("cpu")), args)
    (buffers,) = saved["buffers"]
    before = state.state_dict()
    assert not torch.equal(before["model"]["conv1.weight"], saved["model"]["conv1.weight"])
    state.load_state_dict({**saved, "own_buffers": buffers})
    after = state.state_dict()
    for part in ("model", "scaler", "position", "record", "best"):
        assert_same(after[part], saved[part])
    assert_same(after["optimizer"]["state"], saved["optimizer"]["state"])
    assert_same(after["own_buffers"], buffers)
    rates = [group["lr"] for group in after["optimizer"]["param_groups"]]
    assert rates == [group["lr"] for group in saved["optimizer"]["param_groups"]]


def replace(path: str, value: object):
    """Return a function that replaces a value somewhere in nested dicts and lists."""

    def change(saved: dict) -> None:
        *outer, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in outer:
            saved = saved[key]
        saved[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model", None, "model is missing"),
        ("model/conv1.weight", 3, "model holds more than tensors"),
        ("position", {"epoch": 0}, "position does not fit"),
        ("position/step", -1, "position does not fit"),
        ("position/seconds", float("nan"), "position does not fit"),
        ("scaler", None, "scaler does not fit"),
        ("optimizer", [], "optimizer does not fit"),
        ("optimizer/state/0/momentum_buffer", torch.zeros(3), "optimizer does not fit"),
        ("optimizer/param_groups", [{"lr": 0.1}], "optimizer does not fit"),
        ("optimizer/param_groups/1/lr", "high", "optimizer does not fit"),
        ("buffers", [], "buffers does not fit"),
        ("buffers/0/1", torch.zeros(64, device="meta"), "buffers does not fit"),
        ("record", {"lr": torch.zeros(2)}, "record does not fit"),
        ("best", None, "best does not fit"),
        ("best/CP_3", "high", "best does not fit"),
        ("best/AP", [0.5], "best does not fit"),
        ("classes", ["other"], "other classes or label files"),
        ("config/labels", "other", "other classes or label files"),
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused(saved, path, value, says):
    expected = expected_of(saved)
    before = copy.deepcopy(expected)
    check_resumable(saved, expected, "last.pth")
    replace(path, value)(saved)
    with pytest.raises(UserError, match=f"^last.pth .*{says}"):
        check_resumable(saved, expected, "last.pth")
    assert_same(expected, before)


def test_a_first_epoch_has_no_best_one_yet(saved):
    expected = expected_of(saved)
    saved["best"] = None
    saved["position"]["epoch"] = 0
    check_resumable(saved, expected, "last.pth")
    del saved["best"]
    with pytest.raises(UserError, match="best does not fit"):
        check_resumable(saved, expected, "last.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["torch.optim.Optimizer.load_state_dict", "utils.training.messages.format_report"]
)
def test_a_fault_of_the_program_in_a_resume_is_a_traceback(finished, command, monkeypatch, where):
    def broken(*args) -> None:
        raise AttributeError("a typo")

    monkeypatch.setattr(where, broken)
    with pytest.raises(AttributeError, match="a typo"):
        command(main, "--resume", finished)


def test_options_of_a_saved_run_are_parsed_like_a_command_line():
    parser = main.make_parser()
    config = {
        "dataset": "shapes",
        "lr": 0.02,
        "compile": True,
        "cutmix": "a.pth",
        "output_dir": "run",
        "x": 1,
    }
    options = vars(saved_options(parser, config))
    assert (options["lr"], options["compile"], options["cutmix"]) == (0.02, True, "a.pth")
    assert options["batch_size"] == 16
    assert not {"output_dir", "unknown"} & options.keys()
    for name, value in (("batch_size", 1.5), ("num_heads", 3), ("compile", "yes")):
        with pytest.raises(UserError, match=f"--{name}"):
            saved_options(parser, {**config, name: value})


def test_a_state_is_shared_among_another_number_of_processes():
    position = {"epoch": 1, "step": 2, "seconds": 3.0, "loss_sum": 4.0, "labels": 6.0}
    buffers = [[torch.tensor([1.0, 2.0]), torch.tensor(7)], [torch.tensor([3.0, 6.0]), torch.tensor(7)]]
    saved = {"position": position, "buffers": buffers}
    assert share_among(saved, 2) is saved
    state = share_among(saved, 4)
    assert state["position"] == {**position, "loss_sum": 2.0, "labels": 3.0}
    assert_same(state["buffers"], [[torch.tensor([2.0, 4.0]), torch.tensor(7)]] * 4)
    assert position["loss_sum"] == 4.0


def test_the_seed_of_a_step_is_the_same_everywhere():
    known = {
        (0, 0, 0): 15793235383387715774,
        (0, 1, 0): 5836529245451711556,
        (0, 2, 0): 17195319236771816063,
        (0, 0, 1): 8649202198168436674,
    }
    for numbers, seed in known.items():
        assert step_seed(*numbers) == seed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory in KiB")
def test_best_pth_takes_little_memory_in_each_process(tmp_path):
    """Measure two processes with a network of 96 MiB; with more, each takes the same."""
    network = broadcast_memory.make_network(96)
    weights = {name: torch.full_like(value, 2) for name, value in network.state_dict().items()}
    content = {"model": weights, "config": {"lam": 0.1, "img_size": 64}, "classes": ["a"], "record": {}}
    torch.save(content, tmp_path / "best.pth")
    status, _, err = finish_ranks(start_ranks(2, "tests/broadcast_memory.py", tmp_path, 96))
    assert status == 0, err
    peaks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert max(peaks) < 2.5, peaks
    assert min(peaks) > 0.9, peaks
