"""Few open files allowed, as after `ulimit -n 40`: every command ends, and says how to go on."""

import errno
import os
import resource

import pytest

from helpers import SHAPES, TINY, finish, start_preloaded
from utils.data.bad_images import decode_all
from utils.inference import photographs
from utils.inference.photographs import load_photo
from utils.runtime import open_files
from utils.runtime.errors import UserError, out_of_files_message, user_message
from utils.runtime.open_files import check_open_files, num_open_files


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "num_workers"), [(24, 0), (24, 4), (64, 4)])
@pytest.mark.parametrize("script", ["main.py", "val.py", "demo.py"])
def test_commands_end_with_few_open_files(shapes, trained, tmp_path, limit, script, num_workers):
    options = ["--device", "cpu", "--num_workers", num_workers, "--batch_size", 2]
    match script:
        case "main.py":
            run = [
                "--dataset",
                "shapes",
                *TINY,
                *options,
                "--total_epoch",
                1,
                "--output_dir",
                tmp_path / "run",
            ]
        case "val.py":
            run = [*SHAPES, *options, "--load_from", trained / "best.pth"]
        case "demo.py":
            run = ["--load_from", trained / "best.pth", *options, "--img_dir", "data/shapes/images/test"]
    status, _, err = finish(start_preloaded(script, *run, files=limit))
    if status:
        assert (status, len(err.splitlines())) == (2, 1), err
        assert "ulimit -n" in err
        assert "--num_workers" in err
        assert num_workers > 0, "the way out of the message does not help"
        assert list(tmp_path.iterdir()) == []


def test_the_workers_are_refused_if_the_limit_is_too_low(monkeypatch):
    def allow(limit: int) -> None:
        monkeypatch.setattr(open_files.resource, "getrlimit", lambda kind: (limit, 10**6))

    allow(num_open_files() + 3 * 8 + 32)
    check_open_files(8)
    with pytest.raises(UserError, match=r"9 workers need up to \d+ open files.*`ulimit -n` .*--num_workers"):
        check_open_files(9)
    allow(10)
    check_open_files(0)
    allow(resource.RLIM_INFINITY)
    check_open_files(1000)
    monkeypatch.setattr(open_files, "resource", None)  # Windows
    check_open_files(1000)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files", "a.jpg"),
        OSError(errno.ENFILE, "Too many open files in system"),
        RuntimeError(
            "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"
        ),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_each_error_of_too_many_open_files_names_the_way_out(error):
    message = user_message(error)
    assert "ulimit -n" in message
    assert "--num_workers" in message


@pytest.mark.parametrize("name", ["Too many open files.jpg", "out of memory.jpg"])
def test_a_file_name_is_not_taken_for_the_reason(name):
    error = FileNotFoundError(2, "No such file", name)
    assert (user_message(error), out_of_files_message(error)) == (f"{name}: No such file", None)


def test_too_many_open_files_are_not_the_fault_of_a_photograph(monkeypatch, tmp_path):
    def fail(*args, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg")

    monkeypatch.setattr(photographs, "load_image", fail)
    with pytest.raises(OSError, match="Too many open files"):
        load_photo("a.jpg", 40, 10**6)
    monkeypatch.setattr("utils.data.decoding.load_image", fail)
    with pytest.raises(OSError, match="Too many open files"):
        decode_all(["a.jpg"], 10**6)
