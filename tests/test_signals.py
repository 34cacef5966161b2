"""A signal to all processes of a command ends it with one line, however its workers start."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from helpers import REPOSITORY, RUN, finish, start, start_method, start_preloaded, wait_until
from narrow import WIDE
from pipeline.resnet_csra import ResNet_CSRA
from preloaded import Preloaded
from utils.runtime import interrupt, signals
from utils.weights.contents import load_checkpoint

STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
if signal.SIGHUP in signals.SIGNALS:  # not under nohup
    STATUSES[signal.SIGHUP] = 143
OPTIONS = [*RUN, "--num_workers", 1, "--total_epoch", 1000, "--output_dir"]


def is_preloaded(method: str) -> bool:
    """Return whether commands whose workers start by a method run where torch is imported already."""
    return method == multiprocessing.get_start_method() == "fork"


@pytest.fixture
def method(request, monkeypatch) -> str:
    """Return how workers start; this process has a whole ResNet-18 if the commands import torch anew."""
    if not is_preloaded(request.param):
        monkeypatch.setattr("torchvision.models.resnet18", WIDE)
    return request.param


def start_alone(method: str, *command) -> subprocess.Popen | Preloaded:
    """Start a command in a group of processes of its own, as a terminal does, with stderr in stdout."""
    if is_preloaded(method):
        return start_preloaded(*command, alone=True, stderr_in_stdout=True)
    environment = start_method(method)
    return start(*command, start_new_session=True, env=environment, stderr=subprocess.STDOUT)


def living_processes(group: int) -> list[str]:
    """Return the commands of the processes of a group; a zombie (Z), which has ended, does not count."""
    living = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:  # it has ended just now
            continue
        state, _, its_group = rest.split()[:3]
        if state != "Z" and int(its_group) == group:
            living.append(name)
    return living


def starts_workers(process: subprocess.Popen, method: str) -> bool:
    """Return whether a command, the leader of its group, has begun to start its workers."""
    helpers = 0 if method == "fork" else 1  # the resource tracker of multiprocessing, which starts earlier
    return len(living_processes(process.pid)) > 1 + helpers


def lines_after(number: signal.Signals, process: subprocess.Popen) -> list[str]:
    """Send a signal to all processes of a command; check its end; return its output from the signal on."""
    os.killpg(process.pid, number)
    status, out, _ = finish(process)
    assert status == STATUSES[number], out
    # The helpers of multiprocessing end a moment after the command.
    wait_until(lambda: not living_processes(process.pid), process, ended=True)
    lines = out.splitlines()
    (first,) = [i for i, line in enumerate(lines) if line.startswith(f"{number.name}: ")]
    return lines[first:]


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
# A start by forkserver or spawn imports torch in each process, so these get one signal; SIGUSR1 comes below.
SENT = {"fork": list(STATUSES), "forkserver": list(STATUSES)[-1:], "spawn": [signal.SIGTERM]}
methods = pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"], indirect=True)


@pytest.mark.slow
@needs_proc
@methods
def test_signals_save_and_end_the_run(shapes, tmp_path, command, method):
    folders = {number: tmp_path / number.name for number in SENT[method]}
    runs = {number: start_alone(method, "main.py", *OPTIONS, folders[number]) for number in SENT[method]}
    for number, run in runs.items():
        folder = folders[number]
        wait_until((folder / "log.jsonl").exists, run)
        says, *others, last = lines_after(number, run)
        assert all(
            line.startswith(("evaluated ", "epoch ")) for line in others
        )  # of the step that it finished
        assert says == f"{number.name}: saving and stopping; a second signal ends it at once"
        assert last.startswith("stopped at ")
        assert last.endswith(f"; resume with: python main.py --resume {folder}")
        epoch = load_checkpoint(folder / "last.pth")["position"]["epoch"]
        assert epoch >= 1
    assert command(main, "--resume", folder, "--total_epoch", epoch + 1).status == 0


@pytest.mark.slow
@needs_proc
@methods
def test_a_signal_may_come_while_the_workers_start(shapes, tmp_path, command, method):
    folder = tmp_path / "run"
    run = start_alone(method, "main.py", *OPTIONS, folder)
    wait_until(lambda: starts_workers(run, method), run)
    _, last = lines_after(signal.SIGUSR1, run)
    assert last == f"stopped at step 1 of epoch 1; resume with: python main.py --resume {folder}"
    assert command(main, "--resume", folder, "--total_epoch", 1).status == 0


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("method", ["fork", "spawn"], indirect=True)
def test_a_signal_may_come_while_the_workers_of_an_evaluation_start(shapes, tmp_path, method):
    torch.save(ResNet_CSRA(1, 0.1, 8, depth=34).state_dict(), tmp_path / "model.pth")
    options = ["--dataset", "shapes", "--split", "train", "--num_workers", 1, "--batch_size", 1]
    slow = ["--img_size", 480, "--device", "cpu"]  # so that the evaluation does not end before the signal
    evaluation = start_alone(method, "val.py", *options, *slow, "--load_from", tmp_path / "model.pth")
    wait_until(lambda: starts_workers(evaluation, method), evaluation)
    lines = lines_after(signal.SIGUSR1, evaluation)
    assert lines == ["SIGUSR1: stopping; a second signal ends it at once"]


def test_a_second_signal_ends_the_process_unless_the_terminal_sent_it(capfd):
    with interrupt.deferring_signals("saving"):
        signal.raise_signal(signal.SIGTERM)
        handlers = {number.name: signal.getsignal(number) for number in signals.SIGNALS}
        assert interrupt.received == [signal.SIGTERM]
    assert handlers.pop("SIGHUP", print) != signal.SIG_DFL
    assert handlers.pop("SIGINT") == signal.default_int_handler  # it removes the file that is half written
    assert set(handlers.values()) == {signal.SIG_DFL}
    assert "SIGTERM: saving; a second signal ends it at once" in capfd.readouterr().err


@pytest.mark.slow
def test_nohup_is_respected():
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    program += "from utils.runtime import signals; print([number.name for number in signals.SIGNALS])"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout == "['SIGINT', 'SIGTERM', 'SIGUSR1']\n"


SCRIPTS = ["main.py", "val.py", "demo.py", "export.py", "benchmarks/bench.py"]
SCRIPTS += [f"experiments/{name}.py" for name in ("claims", "pointing")]
SCRIPTS += [f"utils/{name}.py" for name in ("evaluation", "plot")]
PREPARED = ("voc", "coco", "wider", "csv", "shapes", "openimages", "nuswide")
SCRIPTS += [f"utils/prepare_{name}.py" for name in PREPARED]


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_ends_a_command_quietly(tmp_path, script):
    """Replace the packages that the command imports first by modules that take long."""
    for name in ("torch", "numpy", "tqdm"):
        slow = "import time; print('importing', flush=True); time.sleep(60)"
        (tmp_path / f"{name}.py").write_text(slow)
    process = start(script, "--help", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "")


SLOW_DOWNLOAD = """
import sys, time
sys.path.insert(0, "{}")
import main
from utils.command_line import load_from
from utils.runtime.script import run_script

def download(*address_and_name, **options):
    print("downloading", flush=True)
    time.sleep(60)

load_from.fetch = download
run_script(main.main)
"""


@pytest.mark.slow
def test_a_signal_before_the_first_save_leaves_nothing(shapes, tmp_path):
    processes = {}
    script = tmp_path / "script.py"
    script.write_text(SLOW_DOWNLOAD.format(REPOSITORY))
    sent = STATUSES.keys() & {signal.SIGTERM, signal.SIGHUP}
    for number in sent:
        folder = tmp_path / number.name / "runs" / "run"
        words = [*RUN, "--pretrained", "imagenet", "--output_dir", folder]
        processes[folder] = start_preloaded(script, *words)
    for number, (folder, process) in zip(sent, processes.items()):
        assert process.stdout.readline() == "downloading\n"
        assert (folder / ".lock").exists()
        process.send_signal(number)
        assert finish(process) == (STATUSES[number], "", "")
        assert not folder.parent.exists()


def test_a_signal_while_a_command_writes_removes_the_unfinished_file(tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from utils.runtime.files import atomic_write\n"
        "from utils.runtime.script import run_script\n"
        "def main():\n"
        "    with atomic_write(Path(sys.argv[1])) as file:\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "run_script(main)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "file.txt")]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        assert finish(process)[0] == STATUSES[number]
        assert list(tmp_path.iterdir()) == []
