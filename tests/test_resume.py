"""A run that stops and resumes ends like a run that never stopped."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch

import main
from helpers import REPOSITORY, RUN, assert_same, make_own, signal_at, start_preloaded, wait_until
from utils.training.folder import RunFolder
from utils.training.log import log_epoch


def results(folder: Path) -> tuple[list[dict], dict, dict]:
    """Return the log of a run without times, its last weights and momentum, and its best weights."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["images_per_second"]
    last = torch.load(folder / "last.pth", weights_only=True)
    best = torch.load(folder / "best.pth", weights_only=True)
    return records, {"model": last["model"], "momentum": last["optimizer"]["state"]}, best["model"]


STOPS = [
    ("train", 2, "step 2 of epoch 1"),
    ("train", 3, "the evaluation of epoch 1"),
    ("train", 5, "step 2 of epoch 2"),
    ("evaluate", 1, "the evaluation of epoch 1"),
    ("evaluate", 2, "step 1 of epoch 2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "step", "place"), STOPS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    uninterrupted, shapes, tmp_path, command, where, step, place
):
    folder, workers = tmp_path / "run", 2 if step == 2 and where == "train" else 0
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, where, step)
        result = command(main, *RUN, "--output_dir", folder)
    assert result.status == 143
    assert f"stopped at {place}; resume with: python main.py --resume {folder}\n" in result.out
    result = command(main, "--resume", folder, "--num_workers", workers)
    assert result.status == 0, result.err
    assert f"resuming the run in {folder} at {place}\n" in result.out
    assert_same(results(folder), results(uninterrupted))


@pytest.mark.slow
def test_dropout_is_the_same_after_a_resume(shapes, tmp_path, command):
    options = [*RUN, "--total_epoch", 1, "--model", "efficientnet_b0", "--pretrained", "none", "--output_dir"]
    assert command(main, *options, tmp_path / "whole").status == 0
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        assert command(main, *options, tmp_path / "run").status == 143
    assert command(main, "--resume", tmp_path / "run").status == 0
    assert_same(results(tmp_path / "run"), results(tmp_path / "whole"))


@pytest.mark.slow
def test_the_same_command_starts_a_run_and_resumes_it(uninterrupted, shapes, tmp_path, command):
    folder = tmp_path / "run"
    options = [*RUN, "--resume", "--output_dir", folder]
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        result = command(main, *options)
    assert result.status == 143
    assert f"starting a new run in {folder} at step 0 of epoch 1\n" in result.out
    result = command(main, *options)
    assert result.status == 0, result.err
    assert f"resuming the run in {folder} at step 2 of epoch 1\n" in result.out
    assert_same(results(folder), results(uninterrupted))
    assert f"the run in {folder} is finished after epoch 2:" in command(main, *options).out


def test_a_run_starts_from_the_weights_it_is_given_even_with_resume(shapes, trained, tmp_path, command):
    result = command(
        main, *RUN, "--cutmix", trained / "missing.pth", "--resume", "--output_dir", tmp_path / "run"
    )
    assert (result.status, "missing.pth: no such file" in result.err) == (2, True)


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_save(uninterrupted, shapes, tmp_path, command):
    folder = tmp_path / "run"
    run = start_preloaded("main.py", *RUN, "--save_every", 1, "--output_dir", folder)
    wait_until((folder / "previous.pth").exists, run)
    run.kill()
    run.communicate()
    assert command(main, "--resume", "--output_dir", folder).status == 0
    assert_same(results(folder), results(uninterrupted))


@pytest.mark.parametrize(("save_every", "steps"), [(1, [1, 2]), (2, [2]), (3, []), (4, [])])
def test_a_run_saves_once_after_the_last_step_of_an_epoch(
    shapes, tmp_path, command, monkeypatch, save_every, steps
):
    """Note epoch and step of each last.pth: after the steps, after the training, and after the evaluation."""
    written = []

    def write_last(folder: RunFolder, checkpoint: dict) -> None:
        written.append((checkpoint["position"]["epoch"], checkpoint["position"]["step"]))

    monkeypatch.setattr(RunFolder, "write_last", write_last)
    options = ["--total_epoch", 1, "--save_every", save_every, "--output_dir", tmp_path / "run"]
    assert command(main, *RUN, *options).status == 0
    assert written == [*((0, step) for step in steps), (0, 3), (1, 0)]


@pytest.mark.slow
def test_a_finished_run_can_be_extended(finished, command, fails):
    before = (finished / "last.pth").read_bytes()
    old = shutil.copytree(finished, finished.with_name("old"))
    result = command(main, "--resume", "--output_dir", finished)
    assert result.status == 0
    assert "finished" in result.out
    assert (finished / "last.pth").read_bytes() == before
    assert command(main, "--resume", "--output_dir", finished, "--total_epoch", 3).status == 0
    assert [record["epoch"] for record in results(finished)[0]] == [1, 2, 3]

    # Old runs lack newer options and have their position in another order.
    saved = torch.load(old / "last.pth", weights_only=True)
    saved["position"] = dict(reversed(saved["position"].items()))
    for option in ("print_freq", "ema", "loss", "max_pixels", "head_lr_factor", "optimizer"):
        del saved["config"][option]
    torch.save(saved, old / "last.pth")
    other = ["--ema", 0.9, "--loss", "asl", "--head_lr_factor", 1, "--optimizer", "adamw"]
    says = ["--ema 0.9 (it has None)", "--loss asl (it has bce)", "--head_lr_factor 1.0 (it has 10.0)"]
    says.append("--optimizer adamw (it has sgd)")
    fails(main, "--resume", "--output_dir", old, *other, says=says)
    assert command(main, "--resume", "--output_dir", old, "--total_epoch", 3).status == 0
    assert_same(results(old), results(finished))


@pytest.mark.slow
def test_a_run_of_an_earlier_version_resumes_as_it_did_there(workdir, command):
    """Resume a run that commit 24cab36 stopped at step 1 of epoch 2; the file of results is from there, too.

    Its options: --dataset mine --model shufflenet_v2_x0_5 --pretrained none --img_size 40 --batch_size 2
    --lr 0.001 --total_epoch 3 --warmup_epoch 1 --num_workers 0 --device cpu --output_dir run
    """
    make_own(workdir)
    files, folder = REPOSITORY / "tests" / "files", workdir / "run"
    expected = json.loads((files / "run_24cab36.json").read_text())
    folder.mkdir()
    (folder / "last.pth").write_bytes(gzip.decompress((files / "run_24cab36.pth.gz").read_bytes()))
    (folder / "log.jsonl").write_text(expected["stopped_log"])
    before = torch.load(folder / "last.pth", weights_only=True)["model"]
    result = command(main, "--resume", "run")
    assert result.status == 0, result.err
    assert "resuming the run in run at step 1 of epoch 2" in result.out
    records, last, _ = results(folder)
    # CPUs differ by 0.13 % in the loss; without momentum it differs by 34 %, without a batch by 25 %.
    for ours, theirs in zip(records[1:], expected["log"], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["lr"] == theirs["lr"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.01)
    for name, distance in expected["moved"].items():
        moved = (last["model"][name].double() - before[name].double()).norm().item()
        assert moved == pytest.approx(distance, rel=0.01)


@pytest.mark.slow
def test_a_resume_refuses_options_that_change_the_run(finished, fails):
    changes = ["--lr", "0.02", "--num_heads", "2", "--dataset", "voc07", "--batch_size", "8"]
    says = ["--lr 0.02 (it has 0.01)", "--num_heads 2 (it has 1)", "--dataset voc07 (it has shapes)"]
    fails(main, "--resume", "--output_dir", finished, *changes, says=says)


@pytest.mark.slow
@pytest.mark.parametrize("added", [0, 1])
def test_a_resume_refuses_other_classes(finished, shapes, tmp_path, fails, monkeypatch, added):
    shutil.copytree("data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    Path("data/shapes/classes.json").write_text(json.dumps([f"class {i}" for i in range(8 + added)]))
    for path in (Path("data/shapes/train.json"), Path("data/shapes/test.json")):
        entries = json.loads(path.read_text())
        for entry in entries:
            entry["target"] += [0] * added
        path.write_text(json.dumps(entries))
    fails(main, "--resume", finished, says=["trained on other classes or label files"])


@pytest.mark.slow
def test_a_resume_refuses_other_label_files(finished, shapes, tmp_path, command, fails, monkeypatch):
    shutil.copytree("data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    entries = json.loads(Path("data/shapes/test.json").read_text())
    for entry in entries:  # moving the images changes nothing
        entry["img_path"] = str(tmp_path / entry["img_path"])
    Path("data/shapes/test.json").write_text(json.dumps(entries))
    assert command(main, "--resume", finished, "--total_epoch", 3).status == 0
    entries[3]["target"][0] = 1 - entries[3]["target"][0]
    Path("data/shapes/test.json").write_text(json.dumps(entries))
    fails(main, "--resume", finished, says=["last.pth", "label files than --dataset shapes has now"])


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(uninterrupted, shapes, tmp_path, command):
    """Replace the state of one process by a state of two with the same mean, which changes nothing."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        assert command(main, *RUN, "--output_dir", folder).status == 143
    saved = torch.load(folder / "last.pth", weights_only=True)
    (buffers,) = saved["buffers"]
    other = [torch.zeros_like(buffer) for buffer in buffers]
    saved["buffers"] = [[2 * buffer for buffer in buffers], other]
    for name in ("loss_sum", "labels"):  # means over processes
        saved["position"][name] /= 2
    torch.save(saved, folder / "last.pth")
    result = command(main, "--resume", folder)
    assert result.status == 0, result.err
    assert "number of processes: 2 before, 1 now (same batches" in result.out
    assert_same(results(folder), results(uninterrupted))


@pytest.mark.slow
def test_the_averaged_model_gets_the_mean_statistics_of_two_processes(shapes, tmp_path, command):
    """Stop after the last step of an epoch: no step follows that would replace the average's statistics."""
    averaged = [*RUN, "--ema", "0.5"]
    assert command(main, *averaged, "--output_dir", tmp_path / "whole").status == 0
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 3)
        result = command(main, *averaged, "--output_dir", folder)
        assert "stopped at the evaluation of epoch 1" in result.out
    saved = torch.load(folder / "last.pth", weights_only=True)
    (buffers,) = saved["buffers"]
    saved["buffers"] = [[2 * buffer for buffer in buffers], [torch.zeros_like(b) for b in buffers]]
    for state in (saved["model"], saved["raw"]):  # those of the first process
        state |= {k: 2 * v for k, v in state.items() if "running" in k or "num_batches" in k}
    for name in ("loss_sum", "labels"):
        saved["position"][name] /= 2
    torch.save(saved, folder / "last.pth")
    assert command(main, "--resume", folder).status == 0
    assert_same(results(folder), results(tmp_path / "whole"))


def full_disk(*args) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_failed_save_after_a_signal_is_reported(shapes, tmp_path, command):
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 2)
        patch.setattr("os.fsync", full_disk)
        result = command(main, *RUN, "--output_dir", tmp_path / "run")
    assert result.status == 2
    assert "last.pth cannot be written: No space left" in result.err


@pytest.mark.slow
def test_previous_pth_survives_a_full_disk_if_last_pth_is_damaged(finished, uninterrupted, command):
    (finished / "last.pth").write_bytes(b"damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        assert command(main, "--resume", "--output_dir", finished).status == 2
    assert command(main, "--resume", "--output_dir", finished).status == 0
    assert_same(results(finished), results(uninterrupted))


def test_resume_needs_a_run(shapes, tmp_path, fails):
    fails(main, "--resume", says=["--output_dir"])
    way_out = f"to start: --output_dir {tmp_path / 'none'} --resume"
    fails(main, "--resume", tmp_path / "none", says=["none holds no last.pth", way_out])
    fails(main, "--resume", tmp_path / "none" / "last.pth", says=["none holds no last.pth", way_out])
    fails(main, "--resume", "--overwrite", "--output_dir", tmp_path, says=["--overwrite"])


@pytest.mark.slow
def test_machines_with_different_files_are_refused(finished, fails, monkeypatch):
    for other in (None, {"epoch": 0}):
        monkeypatch.setattr("utils.runtime.distributed.gather", lambda value, other=other: [value, other])
        fails(main, "--resume", finished, says=["different files last.pth", "copy the run's folder"])


@pytest.mark.slow
def test_resume_takes_a_folder_or_its_last_pth(finished, command, fails):
    before = (finished / "last.pth").read_bytes()
    for words in (
        ["--resume", finished],
        ["--resume", finished / "last.pth"],
        ["--resume", "--output_dir", finished / "last.pth"],
        ["--resume", finished / "last.pth", "--output_dir", finished],
    ):
        assert f"the run in {finished} is finished" in command(main, *words).out
    assert (finished / "last.pth").read_bytes() == before
    fails(main, "--resume", finished / "best.pth", says=[finished / "best.pth", f"write --resume {finished}"])
    fails(main, "--resume", finished, "--output_dir", "other", says=["--output_dir other", "leave one out"])


@pytest.mark.slow
def test_a_folder_without_last_pth_is_not_replaced(finished, fails):
    for name in ("last.pth", "previous.pth"):
        (finished / name).unlink()
    options = [*RUN, "--resume", "--output_dir", finished]
    fails(main, *options, says=[f"{finished} holds a run", "replace it with --overwrite"])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_previous_pth_replaces_a_damaged_last_pth(finished, uninterrupted, command, damage):
    last = finished / "last.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"cut": content[:100_000], "flipped": content, "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        last.unlink()
    result = command(main, "--resume", "--output_dir", finished)
    assert result.status == 0, result.err
    assert "previous.pth" in result.err
    assert_same(results(finished), results(uninterrupted))


@pytest.mark.slow
def test_an_error_names_the_file_that_was_read(finished, command):
    result = command(main, "--resume", finished, "--lr", 0.5)
    assert f"{finished}/last.pth cannot be resumed: leave out --lr 0.5" in result.err
    (finished / "last.pth").unlink()
    result = command(main, "--resume", finished, "--lr", 0.5)
    assert f"{finished}/previous.pth cannot be resumed: leave out --lr 0.5" in result.err
    state = torch.load(finished / "previous.pth", weights_only=True)
    del state["model"]["conv1.weight"]
    torch.save(state, finished / "previous.pth")
    assert f"{finished}/previous.pth lacks conv1.weight" in command(main, "--resume", finished).err


@pytest.mark.slow
def test_two_damaged_checkpoints_cannot_be_resumed(finished, command):
    for name in ("last.pth", "previous.pth"):
        (finished / name).write_bytes(b"damaged")
    result = command(main, "--resume", "--output_dir", finished)
    assert result.status == 2
    assert "previous.pth" in result.err


def test_the_log_holds_each_epoch_once(tmp_path):
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
