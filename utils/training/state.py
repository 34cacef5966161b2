"""The state of a training run as data: all that changes during training and that a resume needs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.network import Network
from utils.runtime import distributed
from utils.training.average import MovingAverage
from utils.weights.fitting import without_batch_counters


@dataclass
class Progress:
    """Where a run stands.

    epoch: epochs done. step: steps done in the current epoch. seconds: the time that these steps took.
    loss_sum, num_labels: the sum of their losses and the number of their labels; each is a mean over the
    processes.
    record: the last line of the log. best: the line of the log with the highest mAP.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    num_labels: float = 0.0
    record: dict[str, Any] | None = None
    best: dict[str, Any] | None = None

    @property
    def train_loss(self) -> float:
        """The mean loss of the steps done in this epoch; 0 if there are no labels."""
        return self.loss_sum / self.num_labels if self.num_labels else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the progress as last.pth holds it."""
        position = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "labels": self.num_labels,
        }
        return {"position": position, "record": self.record, "best": self.best}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        position = saved["position"]
        self.epoch = position["epoch"]
        self.step = position["step"]
        self.seconds = position["seconds"]
        self.loss_sum = position["loss_sum"]
        self.num_labels = position["labels"]
        self.record = saved["record"]
        self.best = saved["best"]

    def next_epoch(self) -> None:
        """Count the epoch as done."""
        self.epoch += 1
        self.step = 0
        self.seconds = 0.0
        self.loss_sum = 0.0
        self.num_labels = 0.0


@dataclass(eq=False)
class TrainingState:
    """The network, what trains it, and its progress; `moving_average` is None without --ema."""

    network: Network
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    moving_average: MovingAverage | None
    progress: Progress

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated and saved as "model": the average if there is one."""
        return self.moving_average.network if self.moving_average else self.network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def networks(self) -> dict[str, Any]:
        """Return the weights: "model" to evaluate, and with an average also "raw", those that are trained."""
        weights = {"model": self.evaluated.state_dict()}
        if self.moving_average:
            weights["raw"] = self.network.state_dict()
        return weights

    def average_buffers(self) -> None:
        """Average the batch-norm statistics over the processes; all processes call this."""
        distributed.average_buffers(self.network)
        if self.moving_average:
            distributed.average_buffers(self.moving_average.network)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process; "own_buffers" repeats the buffers of its network as a list.

        Within an epoch each process has its own batch-norm statistics, so last.pth holds a list of the
        buffers of all processes.
        """
        return {
            **self.networks(),
            **self.progress.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "own_buffers": [buffer.cpu() for buffer in self.network.buffers()],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, here or in another process."""
        trained = saved["raw"] if self.moving_average else saved["model"]
        self.network.load_state_dict(without_batch_counters(trained), strict=False)
        load_buffers(self.network, saved["own_buffers"])
        if self.moving_average:
            averaged = without_batch_counters(saved["model"])
            self.moving_average.network.load_state_dict(averaged, strict=False)
            load_buffers(self.moving_average.network, saved["own_buffers"])
        load_optimizer(self.optimizer, saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.progress.load_state_dict(saved)


def load_buffers(network: nn.Module, saved: list[Tensor]) -> None:
    """Copy a list of buffers, in the network's order, into the network."""
    for buffer, value in zip(network.buffers(), saved, strict=True):
        buffer.copy_(value)


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Restore the state and the learning rates; the rest of the groups follows from the options."""
    groups = optimizer.state_dict()["param_groups"]
    for group, saved_group in zip(groups, saved["param_groups"], strict=True):
        group["lr"] = saved_group["lr"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
