"""The field's options: asymmetric loss, moving average, mirror images."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import demo
import main
import val
from conftest import SHAPES, TINY
from test_resume import assert_same, signal_at
from utils.datasets import IGNORED
from utils.losses import asl_loss


def test_asymmetric_loss_is_its_papers():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, -4.0, 3.0]], requires_grad=True)
    targets = torch.tensor([[1, 0, 0], [IGNORED, 0, 1]])
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist()):
        p = 1 / (1 + math.exp(-logit))
        q = max(p - 0.05, 0)
        if target == 1:
            total -= math.log(p)
        elif target == 0:
            total -= q**4 * math.log(1 - q)
    loss, labels = asl_loss(logits, targets)
    assert (loss.item(), labels.item()) == (pytest.approx(total, rel=1e-5), 5)
    loss.backward()
    assert logits.grad[1].tolist()[:2] == [0, 0]  # ignored, and a negative below the margin


def test_without_focus_and_margin_it_is_cross_entropy():
    logits, targets = torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    loss, _ = asl_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(asl_loss(torch.tensor([[200.0, -200.0]]), torch.tensor([[0, 1]]))[0])


def run(command, folder: Path, *options) -> dict:
    result = command(main, "--dataset", "shapes", *TINY, "--batch_size", 8, "--output_dir", folder, *options)
    assert result.status == 0, result.err
    return torch.load(folder / "last.pth", weights_only=True)


def test_asl_trains(shapes, command, tmp_path):
    ours = run(command, tmp_path / "asl", "--loss", "asl")
    theirs = run(command, tmp_path / "bce")
    assert ours["config"]["loss"] == "asl"
    assert 0 < ours["record"]["train_loss"] < theirs["record"]["train_loss"]


def test_a_run_from_before_an_option_has_its_default(shapes, command, fails, tmp_path):
    checkpoint = run(command, tmp_path / "run")
    for option in ("ema", "loss", "max_pixels"):
        del checkpoint["config"][option]
    torch.save(checkpoint, tmp_path / "run" / "last.pth")
    resume = ["--resume", "--output_dir", tmp_path / "run"]
    assert command(main, *resume).status == 0
    fails(main, *resume, "--ema", 0.9, says=["--ema 0.9 (it has None)"])
    fails(main, *resume, "--loss", "asl", says=["--loss asl (it has bce)"])


def test_an_average_without_its_weights_is_told(shapes, command, fails, tmp_path):
    checkpoint = run(command, tmp_path / "run", "--ema", 0.9)
    for raw, says in ((3, "start a new run"), ({"a": 1}, "last.pth lacks"), (None, "start a new run")):
        torch.save(checkpoint | {"raw": raw}, tmp_path / "run" / "last.pth")
        (tmp_path / "run" / "previous.pth").unlink(missing_ok=True)
        fails(main, "--resume", "--output_dir", tmp_path / "run", says=["last.pth", says])


def test_a_moving_average_is_one_of_the_weights(shapes, command, tmp_path, monkeypatch):
    """Against an average kept by hand, after every step."""
    mine, decay = {}, 0.9
    build_optimizer = main.build_optimizer

    def watch(optimizer, *args) -> None:
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            now = parameter.detach().double()
            mine[index] = mine[index] * decay + now * (1 - decay) if index in mine else now.clone()

    def watched(*args) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*args)
        optimizer.register_step_post_hook(watch)
        return optimizer

    monkeypatch.setattr(main, "build_optimizer", watched)
    checkpoint = run(command, tmp_path / "run", "--ema", decay)
    averaged = [checkpoint["model"][name] for name in ("conv1.weight", "classifier.multi_head.0.head.weight")]
    torch.testing.assert_close(averaged[0].double(), mine[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(averaged[1].double(), mine[max(mine)], rtol=0, atol=1e-6)
    assert not torch.equal(checkpoint["raw"]["conv1.weight"], averaged[0])
    logged = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["mAP"]
    command(val, *SHAPES, "--load_from", tmp_path / "run" / "last.pth", "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["mAP"] == logged  # of the average


def test_a_moving_average_goes_on_after_a_stop(shapes, command, tmp_path):
    whole = run(command, tmp_path / "whole", "--ema", 0.9)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        arguments = ["--dataset", "shapes", *TINY, "--batch_size", 8, "--ema", 0.9]
        assert command(main, *arguments, "--output_dir", tmp_path / "run").status == 143
    assert command(main, "--resume", "--output_dir", tmp_path / "run").status == 0
    resumed = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    for name in ("model", "raw"):
        assert_same(resumed[name], whole[name])


def test_mirror_images_count_as_much_as_images(trained, shapes, command, tmp_path):
    def scores(*options) -> torch.Tensor:
        result = command(demo, "--load_from", trained / "best.pth", *options, "--json", tmp_path / "s.json")
        assert result.status == 0, result.err
        entry = json.loads((tmp_path / "s.json").read_text())[0]["scores"]
        return torch.tensor(list(entry.values()), dtype=torch.float64).logit()

    with Image.open("data/shapes/images/test/00000.jpg") as image:
        image.save(tmp_path / "a.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    options = ["--num_workers", 0, "--device", "cpu", "--img_size", 48]
    alone, mirrored = (scores(*options, "--img_dir", tmp_path / name) for name in ("a.png", "b.png"))
    both = scores(*options, "--img_dir", tmp_path / "a.png", "--tta", "flip")
    torch.testing.assert_close(both, (alone + mirrored) / 2, rtol=0, atol=1e-4)
    assert not torch.allclose(alone, mirrored)


def test_val_takes_mirror_images_too(trained, shapes, command, tmp_path):
    def evaluated(*options) -> dict:
        arguments = [*SHAPES, "--load_from", trained / "best.pth", "--out", tmp_path / "r.json", *options]
        assert command(val, *arguments).status == 0
        return json.loads((tmp_path / "r.json").read_text())

    flipped = evaluated("--tta", "flip")
    assert flipped["AP"] != evaluated()["AP"]
    swept = evaluated("--tta", "flip", "--sweep", "lam=0.1")
    assert swept["mAP"] == pytest.approx(flipped["mAP"], abs=1e-6)
    assert swept["sweep"][0]["mAP"] == pytest.approx(flipped["mAP"], abs=1e-6)
