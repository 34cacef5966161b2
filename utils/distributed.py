"""Many processes, one per GPU: torchrun starts them and puts each one's rank into the environment."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))


def connect(device: torch.device) -> None:
    """Join the processes that torchrun started, and leave what is printed to the first of them."""
    if WORLD_SIZE > 1:
        if RANK:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def disconnect() -> None:
    """Part from the other processes, at the end of a command."""
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


def first_process_first(action: Callable[[], Any]) -> Any:
    """Call an action that leaves a file behind: in the first process, then in the others, who find it."""
    result = action() if RANK == 0 else None
    if WORLD_SIZE > 1:
        dist.barrier()
    return result if RANK == 0 else action()


def parallel(model: nn.Module) -> nn.Module:
    """Return the model whose backward averages gradients over the processes.

    Batch-norm statistics are each process's own while training: see `average_buffers`.
    """
    if WORLD_SIZE == 1:
        return model
    with warnings.catch_warnings():  # torch 2.14 renames broadcast_buffers to a name that 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def average(tensor: Tensor) -> Tensor:
    """Replace a floating-point tensor by its mean over the processes, and return it."""
    if WORLD_SIZE > 1:
        dist.all_reduce(tensor)
        tensor /= WORLD_SIZE
    return tensor


def average_buffers(model: nn.Module) -> None:
    """Average the batch-norm statistics over the processes, so that all evaluate and save one model."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            average(buffer)


def gather(value: Any) -> list:
    """Return the values of all processes, by rank, to each of them."""
    values = [value]
    if WORLD_SIZE > 1:
        values = [None] * WORLD_SIZE
        dist.all_gather_object(values, value)
    return values
