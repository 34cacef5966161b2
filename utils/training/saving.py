"""Saving a training run: checkpoints, the log, and the results on the test images."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.network import Network
from utils.metrics.multilabel import Metrics
from utils.metrics.report import by_class
from utils.runtime import distributed, interrupt
from utils.runtime.files import nan_to_none, write_json
from utils.runtime.processes import RANK, WORLD_SIZE
from utils.runtime.signals import Interrupted
from utils.training.log import log_epoch
from utils.training.messages import describe_position, diverged, format_record
from utils.training.run import Run
from utils.weights.contents import load_checkpoint
from utils.weights.fitting import first_not_finite, load_weights
from utils.weights.writing import save_checkpoint


def gather_and_save(run: Run) -> None:
    """Write last.pth; UserError if the weights diverged. All processes call this."""
    name = first_not_finite(run.state.network.state_dict())
    if name is not None:
        raise diverged(run, f"the weights of {name} became NaN or infinite")
    checkpoint = last_checkpoint(run)
    checkpoint["buffers"] = distributed.gather(checkpoint.pop("own_buffers"))
    if RANK == 0:
        run.folder.write_last(checkpoint)
    distributed.barrier()  # the other processes wait until it is written


def last_checkpoint(run: Run) -> dict[str, Any]:
    """Return the content of last.pth, except that the "buffers" of all processes are "own_buffers"."""
    return {**run.state.state_dict(), **description(run)}


def best_checkpoint(run: Run) -> dict[str, Any]:
    """Return the content of best.pth."""
    return {**run.state.networks(), **description(run), "record": run.progress.record}


def description(run: Run) -> dict[str, Any]:
    """Return what each checkpoint holds about its run: the options and the names of the classes."""
    config = {name: str(v) if isinstance(v, Path) else v for name, v in vars(run.args).items()}
    return {"config": {**config, "labels": run.labels}, "classes": run.classes}


def finish_epoch(run: Run, metrics: Metrics, seconds: float) -> None:
    """Log the epoch, write best.pth if it is the best so far, and count it as done; seconds: its duration."""
    progress = run.progress
    progress.record = {
        "epoch": progress.epoch + 1,
        "lr": {group["name"]: group["lr"] for group in run.state.optimizer.param_groups},
        "train_loss": progress.train_loss,
        **metrics,
        "seconds": seconds,
        "images_per_second": run.num_images / progress.seconds,
    }
    # mAP is NaN in every epoch if no class has positives; then the last epoch counts as the best one.
    is_best = progress.best is None or not progress.record["mAP"] <= progress.best["mAP"]
    if is_best:
        progress.best = progress.record
    if RANK == 0:
        if is_best:
            save_checkpoint(run.folder.path / "best.pth", best_checkpoint(run))
        log_epoch(run.folder.path, progress.record)
        print(format_record(progress.record))
    progress.next_epoch()


def broadcast_best(run: Run) -> Network:
    """Load best.pth into the evaluated network of all processes; after this the run cannot train any more.

    Only the first process reads the file, because other machines lack the folder.
    """
    if RANK == 0:
        file = run.folder.path / "best.pth"
        load_weights(run.state.evaluated, load_checkpoint(file)["model"], str(file))
    network = run.state.evaluated
    distributed.broadcast([*network.parameters(), *network.buffers()])
    return network


def write_test_results(run: Run, metrics: Metrics) -> None:
    """Write test_results.json, in the form of val.py --out."""
    assert run.progress.best is not None  # an epoch is done
    results = {**by_class(metrics, run.classes), "epoch": run.progress.best["epoch"]}
    if RANK == 0:
        write_json(run.folder.path / "test_results.json", nan_to_none(results))


@contextlib.contextmanager
def saying_how_to_resume(run: Run) -> Iterator[None]:
    """Inside the block, a signal makes the run finish its step, save, and say how to resume."""
    try:
        with interrupt.deferring_signals("saving and stopping"):
            yield
    except Interrupted:
        launcher = "python" if WORLD_SIZE == 1 else "the same torchrun options and"
        command = shlex.join(["main.py", "--resume", str(run.folder.path)])
        with contextlib.suppress(OSError):  # stdout may be a pipe that the same signal closed
            print(f"stopped at {describe_position(run)}; resume with: {launcher} {command}")
        raise
