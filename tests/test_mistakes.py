"""A mistake ends a script with one line that names the value or file, and no file is written."""

import argparse
import json
import math
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import main
import val
from helpers import OWN, SHAPES, TINY, die, finish, make_own, start
from utils.runtime.arguments import number
from utils.runtime.errors import out_of_memory_message
from utils.weights.contents import load_checkpoint

RUN = ["--output_dir", "run"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num_heads", "3"], ["main.py: error: argument --num_heads", "3"]),
        (["--lr", "-0.1"], ["--lr", "-0.1"]),
        (["--lr", "0"], ["--lr", "'0'"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--lr", "inf"], ["--lr", "inf"]),
        (["--seed", "9" * 30], ["--seed", "999"]),
        (["--seed", "9" * 400], ["--seed", "999"]),
        (["--lam", "-1"], ["--lam", "-1"]),
        (["--lam", "much"], ["--lam", "much"]),
        (["--batch_size", "0"], ["--batch_size", "'0'"]),
        (["--num_workers", "100000"], ["--num_workers", "below 1000"]),
        (["--output_dir", ""], ["--output_dir", "empty"]),
        (["--total_epoch", "1.5"], ["--total_epoch", "1.5"]),
        (["--img_size", "20"], ["--img_size", "20"]),
        (["--img_size", "32"], ["--img_size", "32", "33 or more", "one place"]),
        (["--num_cls", "7"], ["--num_cls 7", "8"]),
        (["--model", "resnet20"], ["resnet20", "resnet50", "--list_models"]),
        (["--modle", "resnet18"], ["--modle"]),
        (["--overwrite"], ["--overwrite", "--output_dir"]),
        (["--dataset", "pascal"], ["pascal", "voc07"]),
        (["--dataset", "voc07"], ["data/voc07/trainval_voc07.json", "python utils/prepare_voc.py"]),
        (["--dataset", "coco"], ["data/coco/train_coco2014.json", "python utils/prepare_coco.py"]),
        (["--dataset", "coco2017"], ["data/coco/train_coco2017.json", "--year 2017"]),
        (["--output_dir", "data/shapes/classes.json"], ["--output_dir", "data/shapes/classes.json"]),
        (["--output_dir", "data/shapes/classes.json/run"], ["--output_dir", "data/shapes/classes.json/run"]),
    ],
)
def test_main_refuses_bad_options(shapes, fails, arguments, says):
    fails(main, "--dataset", "shapes", *TINY, *arguments, says=says)


def test_a_wrong_choice_is_refused_with_those_there_are(shapes, command):
    result = command(main, "--dataset", "shapes", "--num_heads", "3")
    assert "0, 1, 2, 4, 6, 8" in result.err.replace("'", "")  # Python 3.14 puts each in quotes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_refused(shapes, fails):
    fails(main, "--dataset", "shapes", *TINY, "--device", "cuda", says=["--device cuda", "cpu"])


def test_val_refuses_options_that_contradict_the_checkpoint(trained, shapes, fails):
    def refused(*flags, says):
        fails(val, *SHAPES, "--load_from", trained / "best.pth", *flags, says=[trained / "best.pth", *says])

    refused("--num_heads", 4, says=["--num_heads 4", "num_heads 1"])
    refused("--num_cls", 20, says=["--num_cls 20", "num_cls 8"])
    refused("--model", "resnet50", says=["--model resnet50", "model resnet18"])
    refused("--dataset", "voc07", says=["8 classes", "class 1 is circle, not aeroplane", "voc07 has 20"])
    fails(val, *SHAPES, says=["--load_from"])


def test_val_replaces_no_file_of_another_kind(trained, shapes, fails):
    checkpoint = trained / "best.pth"
    for out in (
        trained,
        checkpoint,
        trained / "last.pth",
        trained / "log.jsonl",
        "data/shapes/classes.json",
        "/dev/null",
    ):
        fails(val, *SHAPES, "--load_from", checkpoint, "--out", out, says=["--out", out])
    fails(val, *SHAPES, "--load_from", checkpoint, "--out", checkpoint / "r.json", says=["--out", checkpoint])


class Evil:
    """A pickle that makes a file if it is run."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def test_val_refuses_files_that_hold_no_fitting_checkpoint(trained, shapes, fails, tmp_path):
    path = tmp_path / "file.pth"
    whole = torch.load(trained / "best.pth", weights_only=True)
    state = whole["model"]

    def refused(*says: str) -> None:
        fails(val, *SHAPES, "--load_from", path, says=[path, *says])

    refused("no such file")
    path.mkdir()
    refused("not a file: name best.pth in it")
    path.rmdir()
    for content in (b"", (trained / "best.pth").read_bytes()[:5000]):
        path.write_bytes(content)
        refused("is damaged or not from torch.save", "copy or download it again")
    path.write_bytes(b"\n<!DOCTYPE html><html>Google Drive - Quota exceeded")
    refused("a web page", "download it again")
    for content, says in (
        (Evil(), "not a checkpoint"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "no state dict"),
        ({"model": [1]}, "no state dict"),
        (torchvision.models.resnet18(weights=None).state_dict(), "no CSRA head"),
        ({k: v for k, v in state.items() if k != "layer2.0.conv1.weight"}, "lacks layer2.0.conv1.weight"),
        ({**state, "head.weight": torch.zeros(1)}, "also holds head.weight"),
        ({**state, "conv1.weight": torch.zeros(8, 1, 7, 7)}, "conv1.weight has shape (8, 1, 7, 7)"),
        (
            {**state, "conv1.weight": state["conv1.weight"].long()},
            "conv1.weight has shape (8, 3, 7, 7) of torch.int64",
        ),
        ({**state, "conv1.weight": state["conv1.weight"] * math.nan}, "conv1.weight holds NaN"),
        ({**state, "conv1.weight": state["conv1.weight"] * math.inf}, "conv1.weight holds NaN or infinite"),
        ({**state, "conv1.weight": state["conv1.weight"].to_sparse()}, "cannot be loaded"),
        ({**state, "conv1.weight": state["conv1.weight"].to(torch.float8_e4m3fn)}, "cannot be loaded"),
        (
            {**whole, "config": {"lam": 0.1, "img_size": "large"}},
            "img_size in its config is 'large', not a number from 33",
        ),
        ({**whole, "config": {"lam": 0.1, "img_size": 64, "model": [1]}}, "is damaged"),
        ({**whole, "classes": ["a\x1b[2J"] * 8}, "class names are lines"),
    ):
        torch.save(content, path)
        refused(says)
    assert not Path("ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_reported(workdir, command, num_workers):
    make_own(workdir)
    Path("3.png").write_bytes(Path("3.png").read_bytes()[:500])
    arguments = [*OWN, *TINY]
    result = command(main, *arguments, "--num_workers", num_workers)
    assert result.status == 2
    assert result.err.startswith(f"main.py: error: {workdir}/3.png cannot be read as an image")
    assert "the script that made the label files lists all such images (--verify)" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.slow
def test_a_non_finite_loss_ends_the_run(shapes, command, tmp_path):
    arguments = ["--dataset", "shapes", *TINY, "--warmup_epoch", 0, "--output_dir", tmp_path / "run"]
    result = command(main, *arguments, "--lr", 1e18)
    assert result.status == 2
    assert "by step 2 of epoch 1: start again with a lower --lr than 1e+18" in result.err
    assert "or more --warmup_epoch" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(shapes, command, tmp_path):
    folder = tmp_path / "run"
    options = ["--dataset", "shapes", *TINY, "--save_every", 1, "--total_epoch", 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "learning_rate", lambda base, iteration, *rest: 1e39 if iteration > 1 else base)
        result = command(main, *options, "--output_dir", folder)
    assert result.status == 2
    assert "became NaN or infinite by step 1 of epoch 2: start again with a lower" in result.err
    assert "still holds best.pth and last.pth from before" in result.err
    assert load_checkpoint(folder / "last.pth")["position"]["epoch"] == 1
    assert command(main, "--resume", "--output_dir", folder).status == 0


@pytest.mark.slow
def test_a_killed_worker_is_reported(workdir, fails, monkeypatch):
    make_own(workdir)
    monkeypatch.setattr("utils.data.loaders.prepare_worker", die)  # each worker calls it at its start
    # PyTorch checks every 5 s whether its workers are alive.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    says = ["worker (pid", "memory", "--num_workers"]
    fails(main, *OWN, *TINY, *RUN, "--num_workers", 1, says=says)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_failed_run_ends_its_workers(workdir):
    """Check it in a separate process: at its exit Python waits for workers, which ignore signals."""
    make_own(workdir)
    Path("3.png").write_bytes(b"no image")
    options = [*OWN, *TINY, *RUN, "--num_workers", 2, "--batch_size", 1]
    status, _, err = finish(start("main.py", *options))
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("main.py: error: ")
    assert "3.png cannot be read as an image" in err


@pytest.mark.slow
def test_overwrite_keeps_the_earlier_run_until_the_new_one_saves(workdir, command):
    make_own(workdir)
    assert command(main, *OWN, *TINY, *RUN).status == 0
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    image = Path("3.png").read_bytes()
    Path("3.png").write_bytes(b"no image")
    assert command(main, *OWN, *TINY, *RUN, "--overwrite").status == 2
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    Path("3.png").write_bytes(image)
    assert command(main, *OWN, *TINY, *RUN, "--overwrite", "--total_epoch", 1).status == 0
    assert len(Path("run/log.jsonl").read_text().splitlines()) == 1


def test_messages_escape_control_characters_and_shorten_long_names(workdir, fails):
    entries = make_own(workdir)
    entries[0]["img_path"] = "\x1b[31m" + "a" * 4000
    Path("data/mine/train.json").write_text(json.dumps(entries))
    fails(main, *OWN, *TINY, says=["\\x1b[31maaa", " … "])


def test_a_pipe_is_refused_as_a_label_file(workdir, fails):
    make_own(workdir)
    Path("data/mine/test.json").unlink()
    os.mkfifo("data/mine/test.json")
    fails(main, *OWN, *TINY, says=["data/mine/test.json", "not a regular file"])


def test_a_lack_of_memory_is_reported(workdir, fails, monkeypatch):
    make_own(workdir)

    def greedy(*args) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB. GPU 0 has")

    monkeypatch.setattr(main, "to_float", greedy)
    fails(main, *OWN, *TINY, *RUN, says=["memory ran out (CUDA out of memory): use a smaller --batch_size"])
    shared = "DataLoader worker (pid 7) is killed by signal: Bus error. It may be out of shared memory."
    assert "give the container more shared memory" in out_of_memory_message(RuntimeError(shared))


def test_a_wrong_number_is_reported_with_the_bounds_that_matter():
    for parse, text, message in (
        (number(int, 33), "x", "'x' is not a whole number of at least 33"),
        (number(float, 0, False, high=1), "1", "'1' is not a number above 0 and below 1"),
    ):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            parse(text)
        assert str(error.value) == message


def test_an_image_above_max_pixels_is_refused(workdir, fails):
    make_own(workdir)
    fails(main, *OWN, *TINY, *RUN, "--max_pixels", 2999, says=[".png", "60 x 50", "max_pixels 2999"])


def test_a_folder_without_write_access_is_refused(shapes, fails, trained):
    fails(main, "--dataset", "shapes", *TINY, "--output_dir", "/proc/run", says=["--output_dir", "/proc"])
    out = ["--load_from", trained / "best.pth", "--out", "/proc/results.json"]
    fails(val, *SHAPES, *out, says=["--out", "/proc"])


def test_a_resume_refuses_a_malformed_log(trained, shapes, fails, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"epoch": ')
    fails(main, "--resume", "--output_dir", tmp_path / "run", says=["log.jsonl, line 3", "delete the line"])
