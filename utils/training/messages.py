"""The lines that a training run prints."""

import argparse
from typing import Any

from utils.data.loaders import Loaders
from utils.metrics.report import format_report
from utils.runtime.errors import UserError
from utils.runtime.processes import WORLD_SIZE
from utils.training.run import Run


def data_line(run: Run, loaders: Loaders) -> str:
    """Return the line that says how many images a run trains on and evaluates on."""
    split = "validation" if loaders.has_val else "test"
    evaluated = f"{len(loaders.val.dataset)} {split} images"
    return f"{run.num_images} training and {evaluated}, on {run.state.device}"


def start_line(run: Run, is_resumed: bool) -> str:
    """Return the line that says where a run begins."""
    if run.progress.epoch >= run.args.total_epoch:
        finished = f"the run in {run.folder.path} is finished after epoch {run.progress.epoch}"
        return f"{finished}: --total_epoch adds more"
    action = "resuming the" if is_resumed else "starting a new"
    return f"{action} run in {run.folder.path} at {describe_position(run)}"


def warmup_line(args: argparse.Namespace) -> str:
    """Return the warning that the learning rate never reaches --lr, "" if it does."""
    if args.warmup_epoch < args.total_epoch:
        return ""
    lasts = f"--warmup_epoch {args.warmup_epoch} does not end before --total_epoch {args.total_epoch}"
    return f"warning: {lasts}: the learning rate never reaches --lr {args.lr:g}"


def processes_line(before: int) -> str:
    """Return the line that says that the number of processes has changed since the run was saved."""
    changes = "same batches, batch-norm statistics averaged, results not equal to the last bit"
    return f"number of processes: {before} before, {WORLD_SIZE} now ({changes})"


def describe_position(run: Run) -> str:
    """Return where the run stands, in words."""
    progress = run.progress
    if progress.epoch >= run.args.total_epoch:
        return "the test of best.pth"
    step = "the evaluation" if progress.step == run.steps_per_epoch else f"step {progress.step}"
    return f"{step} of epoch {progress.epoch + 1}"


def progress_line(run: Run) -> str:
    """Return a line on the epoch so far."""
    progress = run.progress
    speed = min(progress.step * run.args.batch_size, run.num_images) / progress.seconds
    epoch = f"epoch {progress.epoch + 1}/{run.args.total_epoch}"
    lr = f"lr {run.state.optimizer.param_groups[0]['lr']:.2g}"
    step = f"step {progress.step}/{run.steps_per_epoch}"
    return f"{epoch}  {step}  loss {progress.train_loss:.4f}  {lr}  {speed:.1f} images/s"


def format_record(record: dict[str, Any]) -> str:
    """Return the line on an epoch from its record in log.jsonl."""
    results = f"loss {record['train_loss']:.4f}  mAP {100 * record['mAP']:6.2f} %"
    speed = f"{record['images_per_second']:.1f} images/s  {record['seconds']:.1f} s"
    return f"epoch {record['epoch']:3}  {results}  lr {format_rates(record['lr'])}  {speed}"


def format_rates(rates: dict[str, float]) -> str:
    """Return the learning rate of the backbone, and that of the head in parentheses."""
    backbone = f"{rates['backbone']:.2g}"
    if "classifier" not in rates:
        return backbone
    return f"{backbone} (head {rates['classifier']:.2g})"


def report(run: Run) -> str:
    """Format the metrics of the best epoch."""
    best = run.progress.best
    assert best is not None  # an epoch is done
    return f"best epoch: {best['epoch']} of {run.progress.epoch}\n{format_report(best, run.classes)}"


def diverged(run: Run, what: str) -> UserError:
    """Return the error that says what diverged, what to try, and which files are still good."""
    advice = f"start again with a lower --lr than {run.args.lr:g} or more --warmup_epoch"
    if run.args.amp == "fp16":
        advice += ", or with --amp bf16"
    path = run.folder.path
    saved = [file for file in ("best.pth", "last.pth") if (path / file).exists()]
    if saved:
        advice += f"; {path} still holds {' and '.join(saved)} from before"
    return UserError(f"{what} by step {run.progress.step} of epoch {run.progress.epoch + 1}: {advice}")
