"""Many processes, one per GPU: torchrun starts them and puts each one's rank into the environment."""

import os
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
    """Join the processes that torchrun started: through nccl where each has a GPU, else through gloo."""
    if WORLD_SIZE > 1:
        gpu = device.type == "cuda"
        # With gloo besides nccl, what is on the CPU need not wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", device_id=device if gpu else None)


def disconnect() -> None:
    """Part from the other processes, at the end of a command."""
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


def first_process_first(action: Callable[[], Any]) -> Any:
    """Call an action that leaves a file behind: first in one process of each machine, then in the others."""
    result = action() if LOCAL_RANK == 0 else None
    if WORLD_SIZE > 1:
        dist.barrier()
    return result if LOCAL_RANK == 0 else action()


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
    """Return the mean of a floating-point tensor over the processes."""
    if WORLD_SIZE == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / WORLD_SIZE


def any_process(flag: bool) -> bool:
    """Tell every process whether the flag is set in any of them."""
    return bool(average(torch.tensor(float(flag))) > 0)


def average_buffers(model: nn.Module) -> None:
    """Average the batch-norm statistics over the processes, so that all evaluate and save one model."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(average(buffer.double()))  # exact where all are equal, as after a resume


def gather(value: Any) -> list:
    """Return the values of all processes, by rank, to each of them."""
    values = [value]
    if WORLD_SIZE > 1:
        values = [None] * WORLD_SIZE
        dist.all_gather_object(values, value)
    return values
