"""The loss of an epoch so far, and the time that it took."""

import math
import time

import torch
from torch import Tensor

from utils.runtime import distributed
from utils.training.messages import diverged
from utils.training.run import Run
from utils.training.state import Progress


class EpochMeter:
    """Adds up the losses of this process on the device, so that no step waits for a GPU, and takes the time.

    progress: where the epoch stands; a resumed run may start in the middle of an epoch.
    """

    def __init__(self, progress: Progress, device: torch.device):
        self.totals = torch.tensor([progress.loss_sum, progress.num_labels], device=device)
        self.started = time.perf_counter() - progress.seconds

    def add(self, loss_sum: Tensor, num_labels: Tensor) -> None:
        """Add the sum of a step's losses and the number of labels that it sums over."""
        self.totals += torch.stack([loss_sum.detach(), num_labels])

    def seconds(self) -> float:
        """Return the seconds that the epoch has taken so far, without the time while the run was stopped."""
        return time.perf_counter() - self.started

    def average_into(self, run: Run) -> None:
        """Store the means over the processes, and the time, in the run's progress; all processes call this.

        Raises UserError if the loss is not finite.
        """
        progress = run.progress
        totals = distributed.average(self.totals).tolist()  # waits for the GPU
        progress.loss_sum = totals[0]
        progress.num_labels = totals[1]
        progress.seconds = self.seconds()
        if not math.isfinite(progress.loss_sum):
            raise diverged(run, f"the loss became {progress.loss_sum}")
