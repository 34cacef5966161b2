"""Mistakes end in one line that names the value or file, and leave nothing behind."""

import math
from pathlib import Path

import pytest
import torch
import torchvision

import main
import val
from conftest import OWN, SHAPES, TINY, make_own


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num_heads", "3"], ["--num_heads", "3", "1, 2, 4, 6, 8"]),
        (["--lr", "-0.1"], ["--lr", "-0.1"]),
        (["--lr", "0"], ["--lr", "'0'"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--lr", "inf"], ["--lr", "inf"]),
        (["--seed", "9" * 30], ["--seed", "999"]),
        (["--seed", "9" * 400], ["--seed", "999"]),
        (["--lam", "-1"], ["--lam", "-1"]),
        (["--lam", "much"], ["--lam", "much"]),
        (["--batch_size", "0"], ["--batch_size", "'0'"]),
        (["--total_epoch", "1.5"], ["--total_epoch", "1.5"]),
        (["--img_size", "20"], ["--img_size", "20"]),
        (["--num_cls", "7"], ["--num_cls 7", "8"]),
        (["--model", "resnet20"], ["resnet20", "resnet101"]),
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
def test_main_refuses(shapes, fails, arguments, says):
    fails(main, "--dataset", "shapes", *TINY, *arguments, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(shapes, fails):
    fails(main, "--dataset", "shapes", *TINY, "--device", "cuda", says=["--device cuda", "cpu"])


def test_val_refuses_flags_that_differ_from_the_file(trained, shapes, fails):
    def refused(*flags, says):
        fails(val, *SHAPES, "--load_from", trained / "best.pth", *flags, says=[trained / "best.pth", *says])

    refused("--num_heads", 4, says=["--num_heads 4", "num_heads 1"])
    refused("--num_cls", 20, says=["--num_cls 20", "num_cls 8"])
    refused("--model", "resnet50", says=["--model resnet50", "model resnet18"])
    refused("--dataset", "voc07", says=["8 classes", "voc07 has 20"])
    fails(val, *SHAPES, says=["--load_from"])


def test_val_refuses_an_out_that_is_no_new_file(trained, shapes, fails):
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
    """A pickle that would make a file if it ran."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def test_val_refuses_files_that_are_no_checkpoint_of_this_model(trained, shapes, fails, tmp_path):
    path = tmp_path / "file.pth"
    state = torch.load(trained / "best.pth", weights_only=True)["model"]

    def refused(*says: str) -> None:
        fails(val, *SHAPES, "--load_from", path, says=[path, *says])

    refused("no such file")
    path.mkdir()
    refused("is a folder")
    path.rmdir()
    for content in (b"", b"<html>quota exceeded</html>", (trained / "best.pth").read_bytes()[:5000]):
        path.write_bytes(content)
        refused("not a checkpoint")
    for content, says in (
        (Evil(), "not a checkpoint"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "no state dict"),
        ({"model": [1]}, "no state dict"),
        (torchvision.models.resnet18(weights=None).state_dict(), "no CSRA head"),
        ({k: v for k, v in state.items() if k != "layer2.0.conv1.weight"}, "lacks layer2.0.conv1.weight"),
        ({**state, "head.weight": torch.zeros(1)}, "also holds head.weight"),
        ({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, "conv1.weight has shape (64, 1, 7, 7)"),
    ):
        torch.save(content, path)
        refused(says)
    assert not Path("ran").exists()
    torch.save({**state, "conv1.weight": state["conv1.weight"] * math.nan}, path)
    fails(val, *SHAPES, "--load_from", path, says=["NaN"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_breaks_is_named(workdir, command, num_workers):
    make_own(workdir)
    Path("3.png").write_bytes(Path("3.png").read_bytes()[:500])
    arguments = [*OWN, *TINY]
    result = command(main, *arguments, "--num_workers", num_workers)
    assert result.status == 2
    assert result.err.startswith(f"main.py: error: {workdir}/3.png cannot be read as an image")
    assert result.err.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run(shapes, command, tmp_path):
    arguments = ["--dataset", "shapes", *TINY, "--warmup_epoch", 0, "--output_dir", tmp_path / "run"]
    result = command(main, *arguments, "--lr", 1e18)
    assert result.status == 2
    assert "epoch 1: try a lower --lr" in result.err
    assert not (tmp_path / "run").exists()
