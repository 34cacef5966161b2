"""Options beyond the paper: asymmetric loss, moving average, mirror images, normalisation, other lambdas."""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import demo
import export
import main
import val
from helpers import RUN, SHAPES, assert_same, signal_at, train_in
from utils.checkpoint import load_model
from utils.command_line.summary import SUMMARY, summary
from utils.data.decoding import load_image
from utils.data.labels import IGNORED
from utils.data.transforms import eval_transform
from utils.runtime.errors import UserError
from utils.training.average import MovingAverage, warmed_up
from utils.training.losses import asl_loss
from utils.weights.contents import load_checkpoint


def test_asl_loss_follows_its_paper():
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


def test_asl_loss_focuses_on_hard_positives_too():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    targets = torch.tensor([[1, 1, 0]])
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist()):
        p = 1 / (1 + math.exp(-logit))
        q = p - 0.1
        total -= (1 - p) ** 2 * math.log(p) if target else q**3 * math.log(1 - q)
    loss, _ = asl_loss(logits, targets, gamma_neg=3, gamma_pos=2, clip=0.1)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_asl_loss_without_focus_and_margin_is_cross_entropy():
    logits, targets = torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    loss, _ = asl_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(asl_loss(torch.tensor([[200.0, -200.0]]), torch.tensor([[0, 1]]))[0])


def last(folder: Path) -> dict:
    return torch.load(folder / "last.pth", weights_only=True)


@pytest.mark.slow
def test_asl_trains(uninterrupted, shapes_folder):
    ours = last(train_in(shapes_folder, "asl", *RUN, "--loss", "asl"))
    assert ours["config"]["loss"] == "asl"
    assert 0 < ours["record"]["train_loss"] < last(uninterrupted)["record"]["train_loss"]


@pytest.fixture(scope="module")
def averaged(shapes_folder) -> tuple[Path, dict[int, torch.Tensor]]:
    """Train with --ema 0.9; return the folder and an average computed here, by parameter number."""
    average: dict[int, torch.Tensor] = {}
    steps = itertools.count()
    build_optimizer = main.build_optimizer

    def parameters(optimizer) -> list[torch.Tensor]:
        return [p.detach().double() for group in optimizer.param_groups for p in group["params"]]

    def update(optimizer, *args) -> None:
        n = next(steps)
        decay = min(0.9, (1 + n) / (10 + n))
        for index, now in enumerate(parameters(optimizer)):
            average[index] = average[index] * decay + now * (1 - decay)

    def build_watched(*args) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*args)
        average.update(enumerate(p.clone() for p in parameters(optimizer)))
        optimizer.register_step_post_hook(update)
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "build_optimizer", build_watched)
        return train_in(shapes_folder, "averaged", *RUN, "--ema", "0.9"), average


@pytest.mark.slow
def test_ema_saves_and_evaluates_the_average_of_the_weights(averaged, shapes, command, tmp_path):
    folder, average = averaged
    saved = last(folder)
    first, final = (saved["model"][name] for name in ("conv1.weight", "classifier.multi_head.0.head.weight"))
    torch.testing.assert_close(first.double(), average[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(final.double(), average[max(average)], rtol=0, atol=1e-6)
    assert not torch.equal(saved["raw"]["conv1.weight"], first)
    command(val, *SHAPES, "--load_from", folder / "last.pth", "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["mAP"] == saved["record"]["mAP"]


def test_the_average_of_an_epoch_does_not_hold_the_start_weights():
    """Train on VOC2007 for an epoch, which has 313 steps, with the decay that the documents name."""
    start, end = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(start.weight)
    torch.nn.init.ones_(end.weight)
    average = MovingAverage(start, 0.9997)
    for step in range(313):
        average.update(end, step)
    assert average.network.weight.item() > 0.999
    assert start.weight.item() == 0
    assert warmed_up(0.9997, 10**6) == 0.9997


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_average_is_compiled_like_the_network(shapes):
    for options, is_compiled in (([], False), (["--compile"], True)):
        words = ["--dataset", "shapes", "--ema", "0.9", "--device", "cpu", *options]
        args = main.resolve(main.make_parser().parse_args(words))
        state = main.build_state(main.build_model(args, torch.device("cpu")), args)
        for network in (state.network, state.evaluated):
            assert (network._compiled_call_impl is not None) == is_compiled


@pytest.mark.slow
def test_a_resumed_run_continues_the_average(averaged, shapes, command, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        assert command(main, *RUN, "--ema", 0.9, "--output_dir", tmp_path / "run").status == 143
    assert command(main, "--resume", "--output_dir", tmp_path / "run").status == 0
    for name in ("model", "raw"):
        assert_same(last(tmp_path / "run")[name], last(averaged[0])[name])


@pytest.mark.slow
def test_a_resume_needs_the_weights_behind_the_average(averaged, shapes, fails, tmp_path):
    run = Path(shutil.copytree(averaged[0], tmp_path / "run"))
    (run / "previous.pth").unlink()
    for raw, says in ((3, "start a new run"), ({"a": 1}, "last.pth lacks"), (None, "start a new run")):
        torch.save(last(averaged[0]) | {"raw": raw}, run / "last.pth")
        fails(main, "--resume", "--output_dir", run, says=["last.pth", says])


def test_tta_averages_the_logits_of_an_image_and_its_mirror_image(trained, shapes, command, tmp_path):
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


def test_val_averages_over_mirror_images(trained, shapes, command, tmp_path):
    def evaluated(*options) -> dict:
        arguments = [*SHAPES, "--load_from", trained / "best.pth", "--out", tmp_path / "r.json", *options]
        assert command(val, *arguments).status == 0
        return json.loads((tmp_path / "r.json").read_text())

    flipped = evaluated("--tta", "flip")
    assert flipped["AP"] != evaluated()["AP"]
    swept = evaluated("--tta", "flip", "--sweep", "lam=0.1")
    assert swept["mAP"] == pytest.approx(flipped["mAP"], abs=1e-6)
    assert swept["sweep"][0]["mAP"] == pytest.approx(flipped["mAP"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["0.5", "imagenet"])
def test_normalization_is_an_option_that_checkpoints_store(shapes, shapes_folder, command, tmp_path, name):
    folder = train_in(shapes_folder, f"normalized-{name}", *RUN, "--normalize", name)
    assert last(folder)["config"]["normalize"] == name
    assert load_model(folder / "last.pth").network.normalization == name
    assert load_model(str(folder / "last.pth"), normalize="none").network.normalization == "none"

    def evaluated(path: Path, *options) -> float:
        arguments = [*SHAPES, "--img_size", 40, "--load_from", path, "--out", tmp_path / "r.json", *options]
        result = command(val, *arguments)
        assert result.status == 0, result.err
        return json.loads((tmp_path / "r.json").read_text())["mAP"]

    assert evaluated(folder / "last.pth") == last(folder)["record"]["mAP"]
    assert evaluated(folder / "last.pth", "--normalize", "none") != last(folder)["record"]["mAP"]
    torch.save(last(folder)["model"], tmp_path / "bare.pth")
    assert evaluated(tmp_path / "bare.pth", "--normalize", name) == last(folder)["record"]["mAP"]


@pytest.mark.slow
def test_demo_and_export_normalise_as_asked(trained, shapes, command, tmp_path):
    image = "data/shapes/images/test/00000.jpg"
    model, scores = load_model(trained / "best.pth", device="cpu", normalize="imagenet"), {}
    for normalize in ("none", "0.5", "imagenet"):
        options = ["--load_from", trained / "best.pth", "--normalize", normalize]
        run = ["--img_dir", image, "--num_workers", 0, "--device", "cpu", "--json", tmp_path / "s.json"]
        assert command(demo, *options, *run).status == 0
        scores[normalize] = list(json.loads((tmp_path / "s.json").read_text())[0]["scores"].values())
    pixels = eval_transform(load_image(image), 40)[None] / 255
    with torch.inference_mode():
        expected = model(pixels)
    torch.testing.assert_close(torch.tensor(scores["imagenet"]), expected[0].sigmoid(), rtol=0, atol=1e-5)
    assert scores["none"] != scores["0.5"] != scores["imagenet"]
    assert command(export, *options, "--out", tmp_path / "m.pt2").status == 0
    exported = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(exported(pixels), expected, rtol=0, atol=1e-5)


def test_an_unknown_normalization_is_refused(trained, shapes, fails, tmp_path):
    checkpoint = ["--load_from", trained / "best.pth"]
    fails(val, *SHAPES, *checkpoint, "--normalize", "1", says=["--normalize", "'1'", "none", "0.5"])
    content = torch.load(trained / "best.pth", weights_only=True)
    for value in ("bogus", 3):
        content["config"]["normalize"] = value
        torch.save(content, tmp_path / "odd.pth")
        fails(
            val, *SHAPES, "--load_from", tmp_path / "odd.pth", says=["odd.pth: normalize", value, "none, 0.5"]
        )
    with pytest.raises(UserError, match="best.pth: normalize bogus is not one of none, 0.5"):
        load_model(trained / "best.pth", normalize="bogus")


@pytest.mark.slow
def test_a_run_from_before_the_option_resumes_with_the_data_sets_normalization(finished, command):
    saved = last(finished)
    assert saved["config"].pop("normalize") == "none"
    torch.save(saved, finished / "last.pth")
    assert command(main, "--resume", "--output_dir", finished, "--total_epoch", 3).status == 0
    assert last(finished)["config"]["normalize"] == "none"


def test_val_says_when_the_labels_are_not_the_trained_ones(trained, shapes, command, tmp_path, monkeypatch):
    def printed(*options) -> str:
        result = command(val, *SHAPES, "--load_from", trained / "best.pth", *options)
        assert result.status == 0, result.err
        return result.out

    note = "this file was trained with other label files, of --dataset shapes\n"
    assert note not in printed() + printed("--split", "train")
    checkpoint = load_checkpoint(trained / "best.pth")
    checkpoint["config"]["labels"] = f"0{checkpoint['config']['labels']}0".replace(" ", "0 0")
    torch.save(checkpoint, tmp_path / "other.pth")
    assert note in printed("--load_from", tmp_path / "other.pth")
    shutil.copytree("data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert note not in printed()
    entries = json.loads(Path("data/shapes/test.json").read_text())
    Path("data/shapes/test.json").write_text(json.dumps(entries[1:]))
    assert note in printed()
    assert note not in printed("--split", "train")


def test_main_prints_the_options_that_matter_or_differ_from_the_defaults(shapes, monkeypatch):
    def printed(*options) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["main.py", *options])
        return summary(main.make_parser(), main.resolve(main.make_parser().parse_args())).splitlines()

    assert printed("--dataset", "shapes") == [
        "data          dataset shapes, num_cls 8, img_size 64, normalize none, batch_size 16",
        "model         model resnet18, num_heads 1, lam 0.1, pretrained none",
        "optimisation  total_epoch 4, warmup_epoch 2, decay_step 4, "
        "optimizer sgd, lr 0.01 (head 0.1), momentum 0.9, w_d 0.0001",
    ]
    other = ["--lr", "0.02", "--head_lr_factor", "1", "--ema", "0.9", "--w_d", "0"]
    place = ["--output_dir", "run", "--overwrite", "--save_every", "5", "--sync_bn", "--normalize", "0.5"]
    data, model, optimisation, run = printed("--dataset", "shapes", "--max_pixels", "10", *other, *place)
    assert data.endswith(
        "dataset shapes, num_cls 8, img_size 64, normalize 0.5, batch_size 16, max_pixels 10"
    )
    assert model == "model         model resnet18, num_heads 1, lam 0.1, pretrained none"
    assert optimisation.endswith("lr 0.02 (head 0.02), momentum 0.9, w_d 0.0, ema 0.9")
    assert run == "run           sync_bn, save_every 5"
    assert "pretrained" not in printed("--cutmix", "FILE")[1]
    assert "normalize none" in printed("--dataset", "wider", "--normalize", "none")[0]  # not the default


def test_the_lines_of_options_leave_out_only_what_other_lines_say(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["val.py", "--load_from", "FILE"])
    main_options = vars(main.make_parser().parse_args([]))
    val_options = vars(val.parse_args()[1])
    not_shown = {
        "head_lr_factor",
        "list_models",
        "output_dir",
        "overwrite",
        "resume",
        "sweep",
    }
    shown = [name for names in SUMMARY.values() for name in names]
    assert sorted(shown) == sorted((main_options | val_options).keys() - not_shown)


def test_val_says_when_lambda_is_not_the_trained_one(trained, shapes, command, tmp_path):
    def printed(path: Path, *options) -> str:
        result = command(val, *SHAPES, "--img_size", 40, "--load_from", path, *options)
        assert (result.status, result.err) == (0, "")
        return result.out

    note = "this file was trained with lambda 0.1; evaluating with 0.3\n"
    assert note in printed(trained / "best.pth", "--lam", 0.3)
    for options in ([], ["--lam", 0.1]):
        assert "trained with lambda" not in printed(trained / "best.pth", *options)
    torch.save(last(trained)["model"], tmp_path / "bare.pth")
    shown = printed(tmp_path / "bare.pth")
    assert "stores no lambda: using 0.1; set another with --lam\n" in shown
    assert "\ndata          dataset shapes, num_cls 8, img_size 40, normalize none, batch_size 16" in shown
    assert (
        f"\nmodel         model resnet18, num_heads 1, lam 0.1, load_from {tmp_path / 'bare.pth'}\n" in shown
    )
    assert "lambda:" not in printed(tmp_path / "bare.pth", "--lam", 0.3)
