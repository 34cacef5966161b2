"""torchrun with two or three processes on the CPU gives the results of one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import distributed_step
import main
import val
from helpers import REPOSITORY, RUN, SHAPES, finish, finish_ranks, start_ranks, start_torchrun, wait_until
from utils.runtime import distributed
from utils.training.log import read_log


@pytest.fixture(scope="module")
def two_processes(shapes_folder) -> tuple[Path, str]:
    """Train in two processes for five epochs; return the folder of the run and what was printed."""
    folder = shapes_folder / "two_processes"
    options = [*RUN, "--total_epoch", 5, "--output_dir", folder]
    status, out, err = finish_ranks(start_ranks(2, "main.py", *options, cwd=shapes_folder))
    assert status == 0, err
    return folder, out


@pytest.mark.slow
def test_three_processes_train_and_evaluate_like_one(shapes, trained, tmp_path, command):
    # The test images make two batches, so one process has none.
    options = [*SHAPES, "--load_from", trained / "best.pth", "--batch_size", 8, "--out"]
    assert command(val, *options, tmp_path / "one.json").status == 0
    arguments = [tmp_path / "three.pth", *options, tmp_path / "three.json"]
    step = start_ranks(3, "tests/distributed_step.py", *arguments)
    one = distributed_step.train()
    status, out, err = finish_ranks(step)
    assert status == 0, err
    assert out.count("mAP") == 1
    assert (tmp_path / "three.json").read_text() == (tmp_path / "one.json").read_text()

    three = torch.load(tmp_path / "three.pth", weights_only=True)
    assert three["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for kind in ("gradients", "weights"):
        for name, expected in one[kind].items():
            difference = (three[kind][name] - expected).double().norm()
            assert difference <= 1e-6 * expected.double().norm(), name


@pytest.mark.slow
def test_two_processes_write_one_run_and_evaluate_like_one(two_processes, shapes, tmp_path, command):
    folder, out = two_processes
    assert out.count("starting a new run in") == out.count("epoch   2") == out.count("validate it with") == 1
    assert sorted(os.listdir(folder)) == ["best.pth", "last.pth", "log.jsonl", "previous.pth"]
    records = read_log(folder)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    # Each process evaluated a batch, and both need the same batch-norm statistics for this result.
    options = ["--load_from", folder / "last.pth", "--batch_size", 8, "--out", tmp_path / "r.json"]
    assert command(val, *SHAPES, *options).status == 0
    metrics = json.loads((tmp_path / "r.json").read_text())
    metrics = {k: list(v.values()) if isinstance(v, dict) else v for k, v in metrics.items()}
    assert {name: records[-1][name] for name in metrics} == metrics


def send_to_last_worker(launcher: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to one of the processes that torchrun started."""
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(workers[-1]), number)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_processes_stop_together_and_resume(two_processes, shapes, tmp_path, command):
    run = tmp_path / "run"
    launcher = start_torchrun(2, "main.py", *RUN, "--total_epoch", 1000, "--output_dir", run)
    wait_until((run / "log.jsonl").exists, launcher)
    send_to_last_worker(launcher, signal.SIGTERM)
    assert finish(launcher)[0] != 0
    stopped_at = len(read_log(run))
    assert stopped_at < 5
    shutil.copytree(run, tmp_path / "one_process")

    # torchrun reads its options from the environment, too. If one process dies, it starts all of them again.
    options = {"env": os.environ | {"PET_MAX_RESTARTS": "1"}}
    launcher = start_torchrun(2, "main.py", "--resume", run, "--total_epoch", 8, "--save_every", 1, **options)
    wait_until(lambda: len(read_log(run)) >= 5, launcher)
    send_to_last_worker(launcher, signal.SIGKILL)
    status, out, err = finish(launcher)
    assert status == 0, err
    assert out.count("resuming the run in") == 2
    assert len(read_log(run)) == 8
    # Sums over processes may differ in the last digits, because their order varies.
    for ours, theirs in zip(read_log(run), read_log(two_processes[0])):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)

    # One process has the same batches; only the batch-norm statistics in training differ.
    arguments = ["--resume", tmp_path / "one_process", "--total_epoch", stopped_at + 1]
    result = command(main, *arguments)
    assert result.status == 0, result.err
    assert "number of processes: 2 before, 1 now" in result.out
    ours, theirs = (read_log(folder)[stopped_at] for folder in (tmp_path / "one_process", two_processes[0]))
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Return two network namespaces that a cable joins; skip the test where the system forbids them.

    A namespace has addresses and ports of its own, as a machine has. Host i has the address 10.211.0.<1 + i>.
    """
    hosts = [f"csra-{os.getpid()}-{i}" for i in range(2)]
    ends = [["cable", "netns", host] for host in hosts]
    commands = [["netns", "add", host] for host in hosts]
    commands.append(["link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]])
    for i, host in enumerate(hosts):
        commands.append(["-n", host, "address", "add", f"10.211.0.{1 + i}/24", "dev", "cable"])
        commands.append(["-n", host, "link", "set", "cable", "up"])
        commands.append(["-n", host, "link", "set", "lo", "up"])
    try:
        for command in commands:
            result = subprocess.run(["ip", *command], capture_output=True, text=True)
            if result.returncode != 0:
                pytest.skip(f"no network namespaces here: {result.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def start_on(host: int, hosts: list[str], *arguments: object) -> subprocess.Popen:
    """Start main.py by torchrun on one of two hosts, one process on each, as docs/training.md says."""
    launcher = [sys.executable, REPOSITORY / "tests" / "torchrun.py", "--run_path", "--start_method=fork"]
    launcher += ["--nnodes=2", "--nproc_per_node=1"]
    launcher += ["--max_restarts=3", "--rdzv_backend=c10d", "--rdzv_endpoint=10.211.0.1:29500"]
    # Both have the name of this machine, so torchrun cannot tell which of them the first address means.
    launcher += [f"--rdzv_conf=is_host={1 - host}", f"--local_addr=10.211.0.{1 + host}"]
    command = ["ip", "netns", "exec", hosts[host], *launcher, REPOSITORY / "main.py", *arguments]
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "cable"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), env=os.environ | variables, **pipes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs the command ip to make two networks")
def test_two_hosts_resume_after_the_death_of_a_process(two_hosts, two_processes, shapes, tmp_path):
    run = tmp_path / "run"
    options = [*RUN, "--total_epoch", 5, "--save_every", 1, "--output_dir", run, "--resume"]
    launchers = [start_on(host, two_hosts, *options) for host in (0, 1)]
    wait_until((run / "log.jsonl").exists, launchers[0])
    send_to_last_worker(launchers[1], signal.SIGKILL)
    ends = [finish(launcher) for launcher in launchers]
    assert [status for status, _, _ in ends] == [0, 0], ends
    out = ends[0][1] + ends[1][1]  # either host may have got rank 0
    assert out.count("starting a new run in") == 1
    assert out.count("resuming the run in") == 1
    ours = [record["train_loss"] for record in read_log(run)]
    theirs = [record["train_loss"] for record in read_log(two_processes[0])]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_one_process_with_several_gpus_prints_a_command_that_uses_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "my set"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    distributed.connect(torch.device("cuda"))
    assert capsys.readouterr().out == ""
    for num_gpus, device, batch_size, out in (
        (4, "cuda", 16, "4 GPUs; to use 4: torchrun --nproc_per_node=4 main.py --dataset 'my set'\n"),
        (6, "cuda", 16, "6 GPUs; to use 4: torchrun --nproc_per_node=4 main.py --dataset 'my set'\n"),
        (6, "cuda", 0, "6 GPUs; to use 6: torchrun --nproc_per_node=6 main.py --dataset 'my set'\n"),
        (3, "cuda", 7, ""),
        (1, "cuda", 16, ""),
        (4, "cpu", 16, ""),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda num_gpus=num_gpus: num_gpus)
        distributed.suggest_torchrun(torch.device(device), batch_size)
        printed = capsys.readouterr().out
        assert printed.endswith(out)
        assert printed.count("\n") == out.count("\n")


SLOW_DOWNLOAD = """
import sys, time
sys.path.insert(0, "{}")
from datetime import timedelta
import torch
import torch.distributed as dist
from utils.runtime import distributed
from utils.runtime.processes import RANK

def download():
    if RANK == 0:
        time.sleep(6)
        open("file", "x").close()
    return open("file").name

join = dist.init_process_group
dist.init_process_group = lambda *args, **kwargs: join(*args, timeout=timedelta(seconds=3), **kwargs)
distributed.connect(torch.device("cpu"))
sys.stderr.write(distributed.first_process_first(download) + "\\n")  # in one piece: both processes write here
distributed.disconnect()
"""


@pytest.mark.slow
def test_the_others_wait_for_a_download_longer_than_for_a_barrier(tmp_path):
    """Shorten the time limit of barriers to 3 s, and let the download take 6 s."""
    script = tmp_path / "script.py"
    script.write_text(SLOW_DOWNLOAD.format(REPOSITORY))
    status, _, err = finish_ranks(start_ranks(2, script, cwd=tmp_path))
    assert (status, err) == (0, "file\nfile\n")


@pytest.mark.slow
def test_an_error_is_reported_by_one_process(shapes, tmp_path):
    """Check an error that all processes meet, and one that a single process meets."""
    shutil.copytree("data", tmp_path / "data")
    damaged = tmp_path / "data" / "shapes" / "images" / "train" / "00005.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    of_all = subprocess.Popen([*torchrun, REPOSITORY / "main.py", *RUN, "--batch_size", "3"], **pipes)
    of_one = start_torchrun(2, "main.py", *RUN, cwd=tmp_path)
    status, _, err = finish(of_all)
    assert status != 0
    assert err.count("main.py: error: --batch_size 3 cannot be shared equally among 2") == 1
    assert "a multiple of 2" in err
    status, _, err = finish(of_one)
    assert status != 0
    assert err.count("main.py: error:") == err.count("00005.jpg") == 1
    assert 'main.py", line' not in err  # no traceback but torchrun's own
