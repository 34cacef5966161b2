"""Going on with a run: where it stands, what last.pth holds, and how it is taken up again."""

import argparse
import functools
import json
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from utils.checkpoint import is_plain, load_checkpoint, load_weights, save_checkpoint
from utils.evaluation import format_report
from utils.runtime.cli import Parser, UserError
from utils.runtime.distributed import RANK, WORLD_SIZE

OWN = {
    "output_dir",
    "overwrite",
    "resume",
    "list_models",
}  # options of the command, the others being of the run
FREE = {
    "save_every",
    "num_workers",
    "max_pixels",
    "device",
    "total_epoch",
}  # with these, too, it goes on as it would have


@dataclass
class Position:
    """Where a run stands, beside its network and optimiser.

    epoch: those done. step: those done of the next one; loss_sum, labels: summed over them; seconds: taken.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    labels: float = 0.0
    seconds: float = 0.0

    def mean_loss(self) -> float:
        """Return the mean loss per label of the steps done."""
        return self.loss_sum / self.labels if self.labels else 0.0


def save_last(folder: Path, checkpoint: dict) -> None:
    """Write last.pth, and keep the one before as previous.pth."""
    last, previous = folder / "last.pth", folder / "previous.pth"
    if last.exists():
        previous.unlink(missing_ok=True)
        try:
            previous.hardlink_to(last)  # so that last.pth is there, whole, at every moment
        except OSError:  # a file system without links
            shutil.copyfile(last, previous)
    save_checkpoint(last, checkpoint)


@functools.lru_cache(1)
def load_last(folder: Path) -> dict:
    """Read last.pth of a run, or, if it is damaged, the one before; UserError where there is neither.

    Kept until `restore_run` has used it: the arguments are read first.
    """
    last, previous = folder / "last.pth", folder / "previous.pth"
    if not last.exists() and not previous.exists():
        raise UserError(f"--resume: {folder} holds no last.pth to go on from; start the run without --resume")
    try:
        return load_resumable(last)
    except UserError as error:
        if not previous.exists():
            raise
        checkpoint = load_resumable(previous)
        if RANK == 0:
            print(f"{error}; going on from {previous}", file=sys.stderr)
            if last.exists():  # out of the way, lest the next save keep it as the one before
                last.rename(folder / "damaged.pth")
        return checkpoint


def load_resumable(path: Path) -> dict:
    """Read a checkpoint that main.py wrote to go on from; UserError if it is none."""
    checkpoint = load_checkpoint(path)
    if "position" not in checkpoint:
        raise UserError(f"{path} is no checkpoint that a run can go on from: main.py writes such as last.pth")
    return checkpoint


def arguments_of_run(parser: Parser, args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of the run to go on with; UserError where one is given that would change it."""
    if args.output_dir is None or args.overwrite:
        raise UserError("--resume goes on with the run that --output_dir names: add it, without --overwrite")
    load_last.cache_clear()
    config = load_last(args.output_dir)["config"]
    # What a run from before an option was not asked, it had as the default.
    old = {name: config.get(name, parser.get_default(name)) for name in vars(args) if name not in OWN}
    # Read like a command line, since the file may be a stranger's.
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in old.items()
        if value is not None and value is not False
    ]
    try:
        parser.set_defaults(**vars(parser.parse_args(words)))
    except UserError as error:
        raise UserError(f"{args.output_dir}/last.pth is damaged, in its config {error}") from None
    args = parser.parse_args()
    if config.get("processes") != WORLD_SIZE:
        raise UserError(
            f"the run of {args.output_dir}/last.pth has {config.get('processes')} processes and cannot go "
            f"on with {WORLD_SIZE}: start it with torchrun as before"
        )
    changed = [
        f"--{name} {getattr(args, name)} (it has {value})"
        for name, value in old.items()
        if name not in FREE and str(getattr(args, name)) != str(value)
    ]
    if changed:
        raise UserError(
            f"the run of {args.output_dir}/last.pth cannot go on with {', '.join(changed)}: leave that out"
        )
    return args


def restore_run(
    folder: Path,
    classes: list[str],
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    average: AveragedModel | None = None,
) -> tuple[Position, dict | None, dict | None]:
    """Load last.pth into model, optimizer and scaler; returns position, last log record and best one.

    Raises UserError where the file holds no run, or one of other classes.
    """
    checkpoint = load_last(folder)
    load_last.cache_clear()
    if checkpoint["classes"] != classes:
        raise UserError(
            f"{folder}/last.pth was trained on other classes than the data set now has: start anew"
        )
    source = str(folder / "last.pth")
    if average:
        load_weights(average.module, checkpoint["model"], source)
        average.module.load_state_dict(checkpoint["model"], strict=False)  # the batch counters, too
        average.n_averaged.fill_(1)  # nothing is saved before the first step
    raw = checkpoint.get("raw") if average else checkpoint["model"]
    if not isinstance(raw, dict) or not all(map(is_plain, raw.values())):
        raise UserError(f"{source} lacks the weights of which it holds the average: start anew")
    load_weights(model, raw, source)
    try:
        restore_optimizer(optimizer, checkpoint["optimizer"])
        restore_scaler(scaler, checkpoint["scaler"])
        # Within an epoch batch-norm statistics are each process's own.
        for buffer, saved in zip(model.buffers(), checkpoint["buffers"][RANK], strict=True):
            take_over(buffer, saved)
        run, best = read_position(checkpoint["position"]), checkpoint["best"]
        check_best(best, run, classes)
        json.dumps(checkpoint["record"])  # TypeError where these are no plain values
        return run, checkpoint["record"], best
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}/last.pth holds no run to go on with ({fault}): start it anew") from None


def restore_optimizer(optimizer: Optimizer, saved: dict) -> None:
    """Take momentum and learning rates over; the other settings are those of the options."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        take_over(
            optimizer.state[parameter]["momentum_buffer"],
            saved["state"].get(index, {}).get("momentum_buffer"),
        )
    for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group["lr"] = float(other["lr"])
        if not math.isfinite(group["lr"]):
            raise ValueError(f"lr {group['lr']}")


def take_over(tensor: Tensor, saved: Any) -> None:
    """Copy a saved tensor into one of the run's; ValueError where it is none such, or holds NaN."""
    if not is_plain(saved) or saved.shape != tensor.shape or not saved.isfinite().all():
        raise ValueError(f"no numbers of shape {tuple(tensor.shape)}")
    tensor.copy_(saved)


def restore_scaler(scaler: torch.amp.GradScaler, saved: dict) -> None:
    """Take the state of the scaler over, which is empty unless the run computes in fp16."""
    if scaler.is_enabled():
        if not (type(saved["scale"]) is float and 0 < saved["scale"] < math.inf):
            raise ValueError(f"scale {saved['scale']}")
        tracker = {"_growth_tracker": int(saved["_growth_tracker"])}
        scaler.load_state_dict(scaler.state_dict() | {"scale": saved["scale"]} | tracker)


def check_best(best: Any, run: Position, classes: list[str]) -> None:
    """Raise where a run that stands at `run` cannot have this for the record of its best epoch."""
    if best is None and run.epoch == 0:
        return
    json.dumps(best)  # TypeError where these are no plain values
    format_report(best, classes, [0] * len(classes))  # as it will be in the end
    if not (type(best["epoch"]) is int and type(best["mAP"]) is float):
        raise ValueError(f"its best epoch is {best['epoch']}, with mAP {best['mAP']}")


def read_position(saved: dict) -> Position:
    """Return the position that a checkpoint holds; ValueError where no run can stand there."""
    for name, value in saved.items():
        if type(value) is not type(getattr(Position, name)) or not 0 <= value < math.inf:
            raise ValueError(f"{name} {value}")
    run = Position(**saved)
    if run.step and not run.seconds:
        raise ValueError(f"{run.step} steps in no time")
    return run
