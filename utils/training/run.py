"""A training run: its folder, where it stands, and how it is saved and resumed."""

import argparse
import contextlib
import itertools
import json
import math
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from utils.data.label_files import fingerprint
from utils.metrics.report import by_class, format_report
from utils.runtime import distributed, interrupt
from utils.runtime.cli import Interrupted, Parser, UserError, reporting_errors
from utils.runtime.distributed import RANK, WORLD_SIZE
from utils.runtime.files import check_folder, nan_to_none, write_json
from utils.training.log import log_epoch, read_log
from utils.weights.contents import load_checkpoint
from utils.weights.fitting import first_not_finite, load_weights
from utils.weights.writing import save_checkpoint

RUN_FILES = ("log.jsonl", "best.pth", "last.pth", "previous.pth", "damaged.pth", "test_results.json")
# Options of the command, not of the run; and options that may differ when a run is resumed.
COMMAND_OPTIONS = {"output_dir", "overwrite", "resume", "list_models", "num_cls"}
FREE_OPTIONS = {"save_every", "print_freq", "num_workers", "max_pixels", "device", "total_epoch"}


@dataclass(eq=False)
class Run:
    """A training run: the network and optimiser, its progress, and the folder that it saves to.

    epoch: epochs done. step: steps done of the next epoch. seconds, train_loss: of these steps together.
    record: the last line of the log. best: the line of the log with the highest mAP.
    """

    args: argparse.Namespace
    classes: list[str]
    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None = None

    def __post_init__(self):
        args, self.eval_model = self.args, self.ema.module if self.ema else self.model
        self.config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        # --overwrite removes the earlier run only when this one has something to put in its place.
        self.replaced = [args.output_dir / file for file in RUN_FILES] if args.overwrite else []
        self.folder = args.output_dir
        self.epoch, self.step, self.seconds, self.train_loss = 0, 0, 0.0, 0.0
        self.steps_per_epoch = math.inf  # until set_data
        self.started = time.perf_counter()
        # Sum of the losses and number of labels in the steps of this epoch, on the device.
        self.totals = torch.zeros(2, device=next(self.model.parameters()).device)
        self.record = self.best = None

    def set_data(self, *loaders: DataLoader) -> None:
        """Store the first loader's steps per epoch, and in config the fingerprints of the label files."""
        self.steps_per_epoch = len(loaders[0])
        self.config["labels"] = " ".join(fingerprint(loader.dataset.labels) for loader in loaders)

    @property
    def where(self) -> str:
        """Where the run stands, in words."""
        if self.epoch >= self.args.total_epoch:
            return "the test of best.pth"
        step = "the evaluation" if self.step == self.steps_per_epoch else f"step {self.step}"
        return f"{step} of epoch {self.epoch + 1}"

    def open_folder(self) -> None:
        """Make the folder of a new run, or check the log of a resumed one."""
        if RANK == 0:
            if self.args.resume:
                read_log(self.folder)
            else:
                self.folder = make_folder(self.args)
            for part in (part for file in RUN_FILES for part in self.folder.glob(f".{file}.*.part")):
                part.unlink(missing_ok=True)  # a killed run was writing it
        self.folder = distributed.gather(self.folder)[0]
        if self.epoch >= self.args.total_epoch:
            print(f"the run in {self.folder} is finished after epoch {self.epoch}: --total_epoch adds more")
        else:
            action = "resuming the" if self.args.resume else "starting a new"
            print(f"{action} run in {self.folder} at {self.where}")

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside the block, a signal makes the run finish its step, save, and say how to resume."""
        try:
            with interrupt.deferring_signals("saving and stopping"):
                yield
        except Interrupted:
            launcher = "python" if WORLD_SIZE == 1 else "the same torchrun options and"
            command = shlex.join(["main.py", "--resume", str(self.folder)])
            with contextlib.suppress(OSError):  # stdout may be a pipe that the same signal closed
                print(f"stopped at {self.where}; resume with: {launcher} {command}")
            raise
        finally:
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                self.folder.rmdir()

    def measure(self) -> tuple[float, float]:
        """Set seconds and train_loss, return mean totals; UserError if not finite. All processes call it."""
        loss_sum, num_labels = distributed.average(self.totals).tolist()  # waits for the GPU
        if self.step:
            self.seconds = time.perf_counter() - self.started
        if not math.isfinite(loss_sum):
            raise self.diverged(f"the loss became {loss_sum}")
        self.train_loss = loss_sum / num_labels if num_labels else 0.0
        return loss_sum, num_labels

    def diverged(self, what: str) -> UserError:
        """Return the error that says what diverged, what to try, and which files are still good."""
        advice = f"start again with a lower --lr than {self.args.lr:g} or more --warmup_epoch"
        if self.args.amp == "fp16":
            advice += ", or with --amp bf16"
        if saved := [file for file in ("best.pth", "last.pth") if (self.folder / file).exists()]:
            advice += f"; {self.folder} still holds {' and '.join(saved)} from before"
        return UserError(f"{what} by step {self.step} of epoch {self.epoch + 1}: {advice}")

    def progress_line(self, loader: DataLoader) -> str:
        """Return a line on the epoch so far."""
        self.measure()
        speed = min(self.step * self.args.batch_size, len(loader.dataset)) / self.seconds
        where = f"epoch {self.epoch + 1}/{self.args.total_epoch}  step {self.step}/{len(loader)}"
        lr = f"lr {self.optimizer.param_groups[0]['lr']:.2g}"
        return f"{where}  loss {self.train_loss:.4f}  {lr}  {speed:.1f} images/s"

    def finish_epoch(self, metrics: dict, num_images: int) -> None:
        """Log the epoch, write best.pth if it is the best one so far, and move on to the next."""
        self.record = {
            "epoch": self.epoch + 1,
            "lr": {group["name"]: group["lr"] for group in self.optimizer.param_groups},
            "train_loss": self.train_loss,
            **metrics,
            "seconds": time.perf_counter() - self.started,
            "images_per_second": num_images / self.seconds,
        }
        if self.best is None or not self.record["mAP"] <= self.best["mAP"]:  # NaN without positives
            self.best = self.record
            if RANK == 0:
                save_checkpoint(self.folder / "best.pth", self.contents())
        if RANK == 0:
            log_epoch(self.folder, self.record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.totals.zero_()
        self.save()
        self.started = time.perf_counter()

    def report(self) -> str:
        """Format the metrics of the best epoch."""
        return f"best epoch: {self.best['epoch']} of {self.epoch}\n{format_report(self.best, self.classes)}"

    def load_best(self) -> nn.Module:
        """Load best.pth into the evaluated network and return it; the run cannot train on after this."""
        file = self.folder / "best.pth"
        weights = load_checkpoint(file)["model"] if RANK == 0 else None  # other machines lack the folder
        load_weights(self.eval_model, distributed.gather(weights)[0], str(file))
        return self.eval_model

    def finish(self, metrics: dict) -> str:
        """Write test_results.json, in the form of val.py --out, and format it."""
        if RANK == 0:
            results = by_class(metrics, self.classes) | {"epoch": self.best["epoch"]}
            write_json(self.folder / "test_results.json", nan_to_none(results))
        return f"best.pth on the test images:\n{format_report(metrics, self.classes)}"

    def contents(self) -> dict[str, Any]:
        """Return what best.pth and last.pth both hold; with --ema, "model" is the average of "raw"."""
        raw = {"raw": self.model.state_dict()} if self.ema else {}
        own = {"config": self.config, "classes": self.classes, "record": self.record}
        return {"model": self.eval_model.state_dict()} | raw | own

    def resume_state(self) -> dict[str, Any]:
        """Return what only last.pth holds, on top of `contents`; all processes must call this."""
        loss_sum, num_labels = self.measure()
        position = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        return {
            "position": position | {"loss_sum": loss_sum, "labels": num_labels},
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # Within an epoch each process has its own batch-norm statistics.
            "buffers": distributed.gather([buffer.cpu() for buffer in self.model.buffers()]),
        }

    def save(self) -> None:
        """Write last.pth and keep the one before as previous.pth; UserError if training diverged."""
        state = self.resume_state()
        if name := first_not_finite(self.model.state_dict()):
            raise self.diverged(f"the weights of {name} became NaN or infinite")
        if RANK == 0:
            while self.replaced:
                self.replaced.pop().unlink(missing_ok=True)
            keep_previous(self.folder)
            save_checkpoint(self.folder / "last.pth", self.contents() | state)
        distributed.barrier()  # the other processes wait until it is written

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore the state saved in last.pth; UserError if it does not fit this run."""
        source = f"{self.args.output_dir}/last.pth"
        labels = self.config.get("labels")
        if (saved["classes"], saved["config"].get("labels", labels)) != (self.classes, labels):
            data = f"--dataset {self.args.dataset} has now: restore its files, or start a new run"
            raise UserError(f"{source} was trained on other classes or label files than {data}")
        own, fault = self.resume_state(), f"{source} holds no run to resume: start a new run"
        with reporting_errors(fault), warnings.catch_warnings(action="ignore"):
            load_weights(self.model, saved["raw"] if self.ema else saved["model"], source)
            if self.ema:
                load_weights(self.ema.module, saved["model"], source)
                self.ema.n_averaged.fill_(1)  # so that the next update averages and does not copy
            theirs, ours = saved["optimizer"], own["optimizer"]
            buffers, processes = saved["buffers"], len(saved["buffers"])
            parts = [saved["position"], saved["scaler"], theirs["state"], *buffers]
            own_parts = [own["position"], own["scaler"], ours["state"], *own["buffers"][:1] * processes]
            if not fits(parts, own_parts):
                raise ValueError("its position, scaler, buffers or momentum do not fit")
            if processes != WORLD_SIZE:
                means = [torch.stack(copies).double().mean(dim=0) for copies in zip(*buffers)]
                buffers = [[mean.to(b.dtype) for mean, b in zip(means, self.model.buffers())]] * WORLD_SIZE
            groups = zip(ours["param_groups"], theirs["param_groups"], strict=True)
            groups = [group | {"lr": float(their_group["lr"])} for group, their_group in groups]
            self.optimizer.load_state_dict({"state": theirs["state"], "param_groups": groups})
            self.scaler.load_state_dict(saved["scaler"])
            for model in (self.model, self.eval_model):  # the average has the model's own buffers
                for buffer, value in zip(model.buffers(), buffers[RANK], strict=True):
                    buffer.copy_(value)
            self.epoch, self.step, self.seconds, *totals = (saved["position"][key] for key in own["position"])
            # The saved totals are means over the processes.
            self.totals.copy_(torch.tensor(totals) * (processes / WORLD_SIZE))
            self.started = time.perf_counter() - self.seconds
            self.record, self.best = saved["record"], saved["best"]
            json.dumps([self.record, self.best])  # raises TypeError unless they are plain values
            if self.epoch or self.best:
                self.report()  # raises if `best` is malformed
        if processes != WORLD_SIZE:
            changes = "same batches, batch-norm statistics averaged, results not equal to the last bit"
            print(f"number of processes: {processes} before, {WORLD_SIZE} now ({changes})")


def fits(saved: Any, own: Any) -> bool:
    """Return whether a saved state has the keys, types and shapes of our own, finite tensors, numbers ≥ 0."""
    if type(saved) is not type(own):
        return False
    if isinstance(own, Tensor):  # the shape first: a hostile file may hold a tensor too large to measure
        same = saved.shape == own.shape and saved.layout == own.layout
        return same and saved.is_floating_point() == own.is_floating_point() and bool(saved.isfinite().all())
    if isinstance(own, dict):
        return saved.keys() == own.keys() and all(fits(saved[key], own[key]) for key in own)
    if isinstance(own, list):
        return len(saved) == len(own) and all(map(fits, saved, own))
    return not isinstance(own, int | float) or 0 <= saved < math.inf


def resumed_options(parser: Parser, args: argparse.Namespace, saved: dict[str, Any]) -> argparse.Namespace:
    """Return the options of the run to resume; UserError if the command line changes one that matters."""
    if "position" not in saved:
        raise UserError("it holds no run to resume, as only last.pth does")
    # Options added since the run was saved take their defaults.
    old = {k: saved["config"].get(k, parser.get_default(k)) for k in vars(args) if k not in COMMAND_OPTIONS}
    given = {name: value for name, value in old.items() if value is not None and value is not False}
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    resumed = parser.parse_args([*words, *sys.argv[1:]])  # what the command line repeats, it overrides
    resumed.output_dir, resumed.resume = args.output_dir, True
    options = [(k, getattr(resumed, k), value) for k, value in old.items() if k not in FREE_OPTIONS]
    changed = [f"--{name} {new} (it has {value})" for name, new, value in options if str(new) != str(value)]
    if changed:
        raise UserError(f"leave out {', '.join(changed)}")
    return resumed


def check_same_start(saved: dict[str, Any] | None) -> None:
    """Raise UserError unless all processes resume from the same save, or all start a new run."""
    if len(set(map(repr, distributed.gather(saved and saved["position"])))) > 1:
        raise UserError("the machines hold different files last.pth: copy the run's folder to all of them")


def find_saved(args: argparse.Namespace) -> dict[str, Any] | None:
    """Set args.output_dir and args.resume; return the checkpoint to resume, None for a new run."""
    named = args.resume if isinstance(args.resume, Path) else None
    given = named or args.output_dir
    if given is None and (args.resume or args.overwrite):
        raise UserError("--resume and --overwrite need the folder of the run: add --output_dir FOLDER")
    if not args.resume:
        return None
    folder = given.parent if given.name == "last.pth" else given
    if folder.is_file():
        raise UserError(f"--resume {given} is not the folder of a run: write --resume {folder.parent}")
    if named and args.output_dir not in (None, given, folder):
        raise UserError(f"--resume {given} and --output_dir {args.output_dir} name two runs: leave one out")
    if named and not holds_run(folder):
        raise UserError(f"{folder} holds no last.pth to resume; to start: --output_dir {folder} --resume")
    args.output_dir, args.resume = folder, holds_run(folder)
    return load_last(folder) if args.resume else None


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run that can be resumed."""
    return (folder / "last.pth").exists() or (folder / "previous.pth").exists()


def load_last(folder: Path) -> dict[str, Any]:
    """Read last.pth of a run, or previous.pth if it is damaged; UserError if neither can be used."""
    last, previous = folder / "last.pth", folder / "previous.pth"
    try:
        return load_checkpoint(last)
    except UserError as error:
        if not previous.exists():
            raise
        checkpoint = load_checkpoint(previous)
        if RANK == 0:
            print(f"{error}; resuming from {previous}", file=sys.stderr)
            if last.exists():  # set it aside, so that the next save does not keep it as previous.pth
                last.rename(folder / "damaged.pth")
        return checkpoint


def keep_previous(folder: Path) -> None:
    """Make last.pth available as previous.pth too; it stays complete at every moment."""
    last, previous = folder / "last.pth", folder / "previous.pth"
    if last.exists():
        previous.unlink(missing_ok=True)
        try:
            previous.hardlink_to(last)
        except OSError:  # the file system has no links
            shutil.copyfile(last, previous)


def check_run_folder(output_dir: Path | None, overwrite: bool) -> None:
    """Raise UserError unless a new run can be written to output_dir, or to checkpoint/ if it is None."""
    check_folder(output_dir or Path("checkpoint"), "--output_dir")
    if output_dir and not overwrite and any((output_dir / file).exists() for file in RUN_FILES):
        add = "add --resume or --overwrite" if holds_run(output_dir) else "replace it with --overwrite"
        raise UserError(f"--output_dir {output_dir} holds a run: name another folder, or {add}")


def make_folder(args: argparse.Namespace) -> Path:
    """Make the folder of a new run: --output_dir, or checkpoint/<its options>, with -2, -3, … if taken."""
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        return args.output_dir
    name = f"{args.dataset}_{args.model}_h{args.num_heads}_lam{args.lam:g}"
    for number in itertools.count(1):
        folder = Path("checkpoint", name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)  # fails if another run took the name just now
            return folder
