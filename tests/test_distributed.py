"""torchrun with two and three processes on the CPU does what one process does."""

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

import val
from conftest import REPOSITORY, SHAPES, TINY

SHARED = ["--dataset", "shapes", *TINY, "--batch_size", "12"]


def torchrun(processes: int, script: str, *arguments) -> list[str]:
    options = ["--standalone", f"--nproc_per_node={processes}"]
    launcher = (
        [sys.executable, "-m", "torch.distributed.run", *options] if processes > 1 else [sys.executable]
    )
    return [*launcher, str(REPOSITORY / script), *map(str, arguments)]


def finish(command: list[str]) -> str:
    """Run a command to its end in this folder; returns what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def one_thread():
    """As many threads as torchrun gives each process: sums of another order differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_gradients_weights_and_loss_are_those_of_one_process(shapes, tmp_path):
    results = []
    for processes in (1, 3):
        finish(torchrun(processes, "tests/distributed_step.py", tmp_path / "result.pth"))
        results.append(torch.load(tmp_path / "result.pth", weights_only=True))
    alone, together = results
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for kind in ("gradients", "weights"):
        for name, expected in alone[kind].items():
            difference = (together[kind][name] - expected).double().norm()
            assert difference <= 1e-6 * expected.double().norm(), name


def test_a_run_of_two_processes_writes_once_and_evaluates_as_one(shapes, tmp_path, command, one_thread):
    # Both processes take batches of the evaluation, and must do so with the same batch-norm statistics.
    out = finish(torchrun(2, "main.py", *SHARED, "--batch_size", 4, "--output_dir", tmp_path / "run"))
    assert out.count("writing to") == out.count("epoch   2") == out.count("validate it with") == 1
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.pth", "last.pth", "log.jsonl", "previous.pth"]
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    arguments = [
        "--load_from",
        tmp_path / "run" / "last.pth",
        "--batch_size",
        4,
        "--out",
        tmp_path / "r.json",
    ]
    assert command(val, *SHAPES, *arguments).status == 0
    metrics = json.loads((tmp_path / "r.json").read_text())
    assert list(metrics["AP"].values()) == records[-1]["AP"]
    assert {name: records[-1][name] for name in metrics if name != "AP"} == {
        name: value for name, value in metrics.items() if name != "AP"
    }


# 10 test images: batches of 4, 4 and 2, or one batch for three processes.
def test_metrics_of_three_processes_are_those_of_one(shapes, trained, tmp_path, command, one_thread):
    # Two batches: one process has none.
    arguments = [*SHAPES, "--load_from", trained / "best.pth", "--batch_size", 8, "--out"]
    assert command(val, *arguments, tmp_path / "one.json").status == 0
    out = finish(torchrun(3, "val.py", *arguments, tmp_path / "three.json"))
    assert out.count("mAP") == 1
    assert (tmp_path / "three.json").read_text() == (tmp_path / "one.json").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_ends_the_run(shapes, tmp_path):
    run = tmp_path / "run"
    command = torchrun(2, "main.py", *SHARED, "--total_epoch", 1000, "--output_dir", run)
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (run / "log.jsonl").exists():
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(processes[-1]), signal.SIGKILL)
        assert launcher.wait(timeout=60) != 0
    finally:
        launcher.kill()


def test_a_damaged_image_is_all_that_is_said(shapes_folder, tmp_path):
    """The process that does not meet it does not add how it lost the other."""
    shutil.copytree(shapes_folder / "data", tmp_path / "data")
    damaged = tmp_path / "data" / "shapes" / "images" / "train" / "00005.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    command = torchrun(2, "main.py", *SHARED)
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert result.stderr.count("main.py: error:") == result.stderr.count("00005.jpg") == 1
    assert result.stderr.count("Traceback") == 1  # torchrun's own


def test_a_mistake_of_all_processes_is_said_once(shapes):
    result = subprocess.run(
        torchrun(2, "main.py", *SHARED, "--batch_size", 3), capture_output=True, text=True
    )
    assert result.returncode != 0
    assert result.stderr.count("main.py: error: --batch_size 3 cannot be shared equally among 2") == 1
    assert "use 4" in result.stderr
