"""One run at a time writes to a folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import main
from helpers import REPOSITORY, RUN, finish, start_preloaded, start_torchrun, wait_until
from utils.runtime.errors import UserError
from utils.runtime.locks import is_open_at
from utils.training.folder import RunFolder
from utils.training.folder_lock import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from utils.training.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path) -> subprocess.Popen:
    """Start a process that holds the lock of the test's folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_lock_ends_with_its_process(holder, tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(UserError, match=rf"in use by another run \(process {holder.pid} on ") as error:
        lock.acquire()
    assert str(tmp_path) in str(error.value)
    assert "another --output_dir" in str(error.value)
    holder.kill()
    holder.wait()
    assert lock.path.exists()
    lock.acquire()
    assert lock.held
    assert lock.path.read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    assert not lock.path.exists()


def test_the_file_of_an_ended_run_is_no_lock(tmp_path):
    """A run may open the file just before another one, which ends, removes it."""
    path = tmp_path / ".lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    assert is_open_at(file, path)
    path.unlink()
    assert not is_open_at(file, path)
    path.touch()
    assert not is_open_at(file, path)
    os.close(file)


def test_without_locks_a_run_says_so_and_leaves_part_files_alone(shapes, tmp_path, command, monkeypatch):
    """A part file may be of another run that lives."""

    def no_locks(*args) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    part = tmp_path / "run" / ".last.pth.7.part"
    part.parent.mkdir()
    part.touch()
    result = command(main, *RUN, "--total_epoch", 1, "--output_dir", part.parent)
    assert result.status == 0, result.err
    assert f"{part.parent} cannot be locked (No locks available): start no second run in it\n" in result.out
    assert part.exists()
    assert not (part.parent / ".lock").exists()


def test_a_folder_that_was_made_for_a_failed_run_is_removed(tmp_path):
    args = main.resolve(main.make_parser().parse_args(["--dataset", "shapes"]))
    with RunFolder() as folder:
        folder.make(tmp_path / "a" / "b", args)
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with RunFolder() as folder:
        folder.make(tmp_path / "mine", args)
    assert (tmp_path / "mine").is_dir()  # it was there before


def test_a_folder_is_made_when_all_processes_have_started(shapes, tmp_path, fails, monkeypatch):
    """If one lacks a GPU, torchrun kills the first process, which then cannot remove what it has made."""

    def connect(*args) -> None:
        assert not list(tmp_path.iterdir())
        raise UserError("another process has no GPU")

    monkeypatch.setattr("utils.runtime.distributed.connect", connect)
    fails(main, *RUN, "--output_dir", tmp_path / "run", says=["another process has no GPU"])


@pytest.mark.slow
def test_a_second_run_in_a_folder_ends_in_one_line(shapes, tmp_path, command):
    folder = tmp_path / "run"
    part = folder / ".last.pth.7.part"
    options = [*RUN, "--total_epoch", 1000]
    first = start_preloaded("main.py", *options, "--output_dir", folder)
    wait_until((folder / "log.jsonl").exists, first)
    part.touch()  # as if the first run were writing it
    second = start_preloaded("main.py", *options, "--resume", "--output_dir", folder)
    status, _, err = finish(second)
    assert status == 2
    assert err.count("\n") == 1
    assert f"{folder} is in use by another run (process {first.pid} on " in err
    assert part.exists()
    first.kill()
    first.communicate()
    result = command(main, "--resume", folder, "--total_epoch", 1)
    assert result.status == 0, result.err
    assert not part.exists()


@pytest.mark.slow
def test_one_process_of_torchrun_takes_the_lock(shapes, tmp_path):
    folder = tmp_path / "run"
    options = [*RUN, "--total_epoch", 1000, "--output_dir", folder]
    first = start_torchrun(2, "main.py", *options)
    wait_until((folder / "log.jsonl").exists, first)
    status, _, err = finish(start_torchrun(2, "main.py", *options, "--resume"))
    assert status != 0
    assert err.count("main.py: error:") == err.count("is in use by another run") == 1
    first.terminate()
    assert finish(first)[0] != 0
    assert not (folder / ".lock").exists()
    assert (folder / "last.pth").exists()


def test_two_new_runs_get_two_folders(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = main.resolve(main.make_parser().parse_args(["--dataset", "shapes", "--model", "resnet18"]))
    with RunFolder() as first, RunFolder() as second:
        first.make(None, args)
        second.make(None, args)
        assert first.path == Path("checkpoint/shapes_resnet18_h1_lam0.1")
        assert second.path == Path("checkpoint/shapes_resnet18_h1_lam0.1-2")
