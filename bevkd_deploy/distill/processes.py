"""Several training processes (torchrun, accelerate launch): what each may do alone, and what they do together.

Without a launcher there is one process, which is the main one, and everything here costs nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from torch import Tensor

#: How long processes wait for the main one, which writes data, measures the teacher and evaluates on its own. One that
#: fails is noticed by the launcher at once, so nothing hangs for this long.
_PATIENCE = timedelta(days=1)

Made = TypeVar("Made")


def accelerator() -> Accelerator:
    """Device and processes of this training; joins the process group on the first call.

    Precision is ours (`precision.py`), and `accelerate launch` has no say in it. A batch of the recipe is dealt to the
    processes, so their number changes how fast a recipe trains and not what it trains.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = launched and not torch.cuda.is_available()  # accelerate joins a group on a CPU only when told that it is one
    if launched:
        # Of 1x1 convolutions, whose strides mean nothing; PyTorch's advice is about speed, and does not apply.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        PartialState(cpu=cpu, timeout=_PATIENCE)
    return Accelerator(
        cpu=cpu, mixed_precision="no", dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False)
    )


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes for a block, and part in good order; an error leaves that to the launcher."""
    accelerator()
    yield
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if _in_group() else 0


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if _in_group() else 1


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, in every process; the others wait for it. It must pickle."""
    if count() == 1:
        return make()
    made: list[Any] = [make() if is_main() else None]
    dist.broadcast_object_list(made)
    return cast(Made, made[0])


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others do: they find its files."""
    if count() > 1 and not is_main():
        dist.barrier()
    yield
    if count() > 1 and is_main():
        dist.barrier()


def gather(value: Made) -> list[Made]:
    """The value of each process, in order of their numbers. It must pickle."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum of a tensor of the same shape in each process, without a gradient."""
    if count() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean of a tensor of the same shape in each process; the gradient flows back to every process.

    A loss that divides by, or standardises with, a quantity of its batch uses it to be the loss of the whole batch.
    Every process has to call it the same number of times, in the same order.
    """
    if count() == 1:
        return tensor
    mean: Tensor = _Mean.apply(tensor)  # type: ignore[no-untyped-call]
    return mean


def divisor(total: Tensor, least: float = 1.0) -> Tensor:
    """What a process divides its part of a sum by, so that the mean over the processes is that of the whole batch.

    Args:
        total: scalar; the weights, or the count, of this process's part.
        least: the smallest that the whole batch is divided by.
    """
    return mean_over_processes(total).clamp(min=least / count())


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor) / count()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0].contiguous()) / count()


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()
