"""Loading a saved state into a run, also one that another number of processes saved."""

from typing import Any

import torch

from utils.runtime.processes import RANK, WORLD_SIZE
from utils.training.folder import SavedRun
from utils.training.messages import processes_line
from utils.training.resumable import check_resumable
from utils.training.run import Run
from utils.training.saving import last_checkpoint


def restore(run: Run, saved: SavedRun) -> None:
    """Load a saved state into a run; UserError if it does not fit."""
    check_resumable(saved.content, last_checkpoint(run), str(saved.file))
    state = share_among(saved.content, WORLD_SIZE)
    run.state.load_state_dict({**state, "own_buffers": state["buffers"][RANK]})
    num_before = len(saved.content["buffers"])
    if num_before != WORLD_SIZE:
        print(processes_line(num_before))


def share_among(saved: dict[str, Any], num_processes: int) -> dict[str, Any]:
    """Convert a saved state to another number of processes.

    Each process gets the mean of the saved buffers. The sums, which are means over processes, are scaled.
    """
    saved_by = len(saved["buffers"])
    if saved_by == num_processes:
        return saved
    means = []
    for copies in zip(*saved["buffers"]):
        mean = torch.stack(copies).double().mean(dim=0)
        means.append(mean.to(copies[0].dtype))
    position = dict(saved["position"])
    for name in ("loss_sum", "labels"):
        position[name] *= saved_by / num_processes
    return {**saved, "buffers": [means] * num_processes, "position": position}
