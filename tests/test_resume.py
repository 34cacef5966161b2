"""A run that was stopped and resumed ends as one that never was."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
from conftest import TINY
from test_distributed import torchrun
from utils import inference
from utils.checkpoint import load_checkpoint
from utils.log import log_epoch

RUN = ["--dataset", "shapes", *TINY, "--batch_size", "8"]  # 3 steps of training and 2 of evaluation an epoch


def results(folder: Path) -> tuple[list[dict], dict, dict]:
    """What a run leaves: its log but for the times, the last weights and optimiser, and the best weights."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["images_per_second"]
    last = torch.load(folder / "last.pth", weights_only=True)
    best = torch.load(folder / "best.pth", weights_only=True)
    return records, {"model": last["model"], "momentum": last["optimizer"]["state"]}, best["model"]


def assert_same(ours: object, theirs: object) -> None:
    """Compare nested results bit for bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert_same(a, b)
    else:
        assert ours == theirs


@pytest.fixture(scope="session")
def undisturbed(shapes_folder) -> Path:
    """The folder of a run that nothing stopped."""
    folder = shapes_folder / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shapes_folder)
        patch.setattr("sys.argv", ["main.py", *RUN, "--output_dir", str(folder)])
        main.main()
    return folder


def signal_at(patch: pytest.MonkeyPatch, where: str, step: int) -> None:
    """Send this process SIGTERM at the n-th step of training, or of evaluation."""
    module, steps = {"train": main, "evaluate": inference}[where], itertools.count(1)
    to_float = module.to_float

    def interrupted(*args):
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return to_float(*args)

    patch.setattr(module, "to_float", interrupted)


STOPS = [("train", 2, 2), ("train", 3, 0), ("train", 5, 0), ("evaluate", 2, 0)]


@pytest.mark.parametrize(("where", "step", "workers"), STOPS)
def test_a_resumed_run_is_the_undisturbed_one(undisturbed, shapes, tmp_path, command, where, step, workers):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, where, step)
        result = command(main, *RUN, "--output_dir", folder)
    assert result.status == 143
    assert f"python main.py --resume --output_dir {folder}" in result.out
    result = command(main, "--resume", "--output_dir", folder, "--num_workers", workers)
    assert result.status == 0, result.err
    assert_same(results(folder), results(undisturbed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])  # SIGTERM comes to the runs above
def test_signals_save_and_end_the_run(undisturbed, shapes, tmp_path, number):
    """In a process of its own, with workers, to all of which a terminal sends the signal."""
    folder = tmp_path / "run"
    arguments = [*RUN, "--num_workers", 2, "--total_epoch", 1000, "--output_dir", folder]
    run = subprocess.Popen(torchrun(1, "main.py", *arguments), stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait_for(folder / "log.jsonl", run)
        os.killpg(run.pid, number)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == (130 if number == signal.SIGINT else 143)
    assert b"Traceback" not in err
    assert number.name.encode() in err
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        os.killpg(run.pid, 0)
    assert load_checkpoint(folder / "last.pth")["position"]["epoch"] >= 1


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until a process has written a file."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_run_goes_on_from_its_last_save(undisturbed, shapes, tmp_path, command):
    folder = tmp_path / "run"
    run = subprocess.Popen(torchrun(1, "main.py", *RUN, "--save_every", 1, "--output_dir", folder))
    try:
        wait_for(folder / "previous.pth", run)
    finally:
        run.kill()
    run.wait()
    assert command(main, "--resume", "--output_dir", folder).status == 0
    assert_same(results(folder), results(undisturbed))


@pytest.fixture
def finished(undisturbed, shapes, tmp_path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(undisturbed, tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_says_so_and_can_be_prolonged(finished, command):
    before = (finished / "last.pth").read_bytes()
    result = command(main, "--resume", "--output_dir", finished)
    assert result.status == 0
    assert "finished" in result.out
    assert (finished / "last.pth").read_bytes() == before
    assert command(main, "--resume", "--output_dir", finished, "--total_epoch", 3).status == 0
    assert [record["epoch"] for record in results(finished)[0]] == [1, 2, 3]


def test_options_that_would_change_the_run_are_refused(finished, fails):
    changes = ["--lr", "0.02", "--num_heads", "2", "--dataset", "voc07", "--batch_size", "8"]
    says = ["--lr 0.02 (it has 0.01)", "--num_heads 2 (it has 1)", "--dataset voc07 (it has shapes)"]
    fails(main, "--resume", "--output_dir", finished, *changes, says=says)


def test_a_data_set_that_changed_is_refused(finished, shapes, fails, monkeypatch):
    monkeypatch.setattr(main, "class_names", lambda folder: [f"class {number}" for number in range(8)])
    fails(main, "--resume", "--output_dir", finished, says=["last.pth was trained on other classes"])


def test_another_number_of_processes_is_refused(finished, fails, monkeypatch):
    monkeypatch.setattr("utils.run.WORLD_SIZE", 2)
    fails(main, "--resume", "--output_dir", finished, says=["has 1 processes", "with 2", "torchrun"])


def full_disk(*args) -> None:
    raise OSError(28, "No space left on device")


def test_a_save_that_fails_after_a_signal_says_so(undisturbed, shapes, tmp_path, command):
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        patch.setattr("os.fsync", full_disk)
        result = command(main, *RUN, "--output_dir", tmp_path / "run")
    assert result.status == 2
    assert "last.pth cannot be written: No space left" in result.err


def test_the_good_checkpoint_survives_a_full_disk_beside_a_damaged_one(finished, undisturbed, command):
    (finished / "last.pth").write_bytes(b"damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        assert command(main, "--resume", "--output_dir", finished).status == 2
    assert command(main, "--resume", "--output_dir", finished).status == 0
    assert_same(results(finished), results(undisturbed))


def test_nothing_to_resume(shapes, tmp_path, fails):
    fails(main, "--resume", says=["--output_dir"])
    fails(main, "--resume", "--output_dir", tmp_path / "none", says=["none", "without --resume"])
    fails(main, "--resume", "--overwrite", "--output_dir", tmp_path, says=["--overwrite"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_a_damaged_last_checkpoint_is_told_and_the_one_before_taken(finished, undisturbed, command, damage):
    last = finished / "last.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"cut": content[:100_000], "flipped": content, "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        last.unlink()
    result = command(main, "--resume", "--output_dir", finished)
    assert result.status == 0, result.err
    assert "previous.pth" in result.err
    assert_same(results(finished), results(undisturbed))


def test_two_damaged_checkpoints_are_an_error(finished, command):
    for name in ("last.pth", "previous.pth"):
        (finished / name).write_bytes(b"damaged")
    result = command(main, "--resume", "--output_dir", finished)
    assert result.status == 2
    assert "previous.pth" in result.err


def test_the_log_has_each_epoch_once(tmp_path):
    record = {
        "lr": {"backbone": 0.1},
        "train_loss": 1.0,
        "mAP": 0.5,
        "images_per_second": 1.0,
        "seconds": 1.0,
    }
    for epoch in (1, 2, 2, 1, 2, 3):
        log_epoch(tmp_path, {"epoch": epoch} | record)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchrun_saves_and_resumes(shapes, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*RUN, "--total_epoch", 5]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = torchrun(2, "main.py", *arguments, "--output_dir", whole)
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0
    run = subprocess.Popen(torchrun(2, "main.py", *arguments, "--output_dir", stopped), env=environment)
    try:
        wait_for(stopped / "log.jsonl", run)
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGTERM)  # one alone: they stop together
        assert run.wait(timeout=60) != 0
    finally:
        run.kill()
    command = torchrun(2, "main.py", "--resume", "--output_dir", stopped)
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0
    # The sums of several processes may differ in the last digits, by the order in which they come together.
    for ours, theirs in zip(results(stopped)[0], results(whole)[0], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
