"""What the processes of torchrun, one per GPU, exchange; a single process exchanges nothing."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from utils.runtime.processes import LOCAL_RANK, RANK, WORLD_SIZE

DOWNLOAD_LIMIT = timedelta(hours=6)  # enough for the largest file, 1.2 GB, at 60 kB/s

Result = TypeVar("Result")


def connect(device: torch.device) -> None:
    """Join the processes of torchrun; without torchrun, do nothing."""
    if WORLD_SIZE == 1:
        return
    gpu = device if device.type == "cuda" else None
    store, *_ = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # When torchrun restarts processes, its store still holds the addresses of the dead ones.
        store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    # With gloo beside nccl, exchanging CPU tensors does not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=RANK, world_size=WORLD_SIZE, device_id=gpu)


def suggest_torchrun(device: torch.device, batch_size: int = 0) -> None:
    """Print the command that uses more GPUs, if this process runs without torchrun on one of several.

    batch_size: of all processes together; the number of GPUs must divide it. 0: any number does.
    """
    if WORLD_SIZE > 1 or device.type != "cuda":
        return
    num_gpus = torch.cuda.device_count()
    fitting = max(n for n in range(1, num_gpus + 1) if batch_size % n == 0)
    if fitting > 1:
        command = f"torchrun --nproc_per_node={fitting} {shlex.join(sys.argv)}"
        print(f"This uses one of {num_gpus} GPUs; to use {fitting}: {command}")


def disconnect() -> None:
    """Leave the group of processes, at the end of a command."""
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if WORLD_SIZE > 1:
        dist.barrier()


def average(tensor: Tensor) -> Tensor:
    """Return the mean of a floating-point tensor over the processes; all processes call this."""
    total = tensor.clone()
    if WORLD_SIZE > 1:
        dist.all_reduce(total)
    return total / WORLD_SIZE


def any_process(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set in any process; all processes call this."""
    shares = average(torch.tensor(flags, dtype=torch.float32))
    return (shares > 0).tolist()


def gather(value: Result) -> list[Result]:
    """Return the values of all processes, ordered by rank; all processes call this."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        with torch.inference_mode(False):  # torch 2.5 cannot gather values in inference mode
            dist.all_gather_object(values, value)
    return values


def gather_in_first(value: Result) -> list[Result]:
    """Return the values of all processes, ordered by rank, in the first process, and [] in the others.

    All processes call this.
    """
    if WORLD_SIZE == 1:
        return [value]
    values = [value] * WORLD_SIZE if RANK == 0 else None
    dist.gather_object(value, values)
    return values or []


def value_of_first(value: Result) -> Result:
    """Return the value of the first process; all processes call this."""
    values = [value]
    if WORLD_SIZE > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace the values of tensors, in place, by those of the first process; all processes call this."""
    if WORLD_SIZE == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)


def first_process_first(action: Callable[[], Result]) -> Result:
    """Call an action in the first process of each machine, which may download a file, then in the others.

    Processes that have not joined each other by `connect` call it at once.
    The others can wait for DOWNLOAD_LIMIT; an ordinary barrier gives up after 10 minutes with nccl, 30 with
    gloo.
    """
    if not dist.is_initialized():
        return action()
    patient_group = dist.new_group(backend="gloo", timeout=DOWNLOAD_LIMIT)
    assert isinstance(patient_group, dist.ProcessGroup)  # every process is a member of it
    if LOCAL_RANK == 0:
        result = action()
        dist.barrier(patient_group)
    else:
        dist.barrier(patient_group)
        result = action()
    dist.destroy_process_group(patient_group)
    return result


def wrap(model: nn.Module) -> nn.Module:
    """Wrap a model in DistributedDataParallel, whose backward averages gradients over the processes."""
    if WORLD_SIZE == 1:
        return model
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        # broadcast_buffers works from torch 2.5 to 2.14, where it gives the warning; its new name,
        # forward_sync_buffers, does not exist in torch 2.11.
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def average_buffers(model: nn.Module) -> None:
    """Average the batch-norm statistics over the processes, so that all evaluate and save the same model."""
    if WORLD_SIZE == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(average(buffer.double()))  # in float64 the average of equal values is exact
