"""Rows of all processes as one tensor, in rank order; the same tensor where there is one process only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from bevkd_deploy.distill import processes


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all processes, without gradient.

    Every process must call this, also one that has no rows; row counts may differ, the other sizes may not.

    Args:
        tensor: [N, ...], N of this process, any dtype and device that the backend carries.

    Returns:
        [sum of N, ...], rank 0 first; on every process the same.
    """
    tensor = tensor.detach()
    if processes.count() == 1:
        return tensor
    return _gather(tensor, _row_counts(tensor))


def gather_rows_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather_rows`, with gradient for this process's own rows, multiplied by the number of processes.

    A loss over all rows, computed alike on every process, then has the gradient of one process with the whole batch,
    because DDP divides the sum of the processes' parameter gradients by their number.
    """
    if processes.count() == 1:
        return tensor
    counts = _row_counts(tensor)
    everything = _gather(tensor.detach(), counts)
    own = _slice(counts)
    rows: Tensor = _MultiplyGradient.apply(tensor)  # type: ignore[no-untyped-call]
    return torch.cat([everything[: own.start], rows, everything[own.stop :]])


def own_rows(tensor: Tensor) -> slice:
    """Where this process's rows stand in what `gather_rows` returns for the same tensor."""
    if processes.count() == 1:
        return slice(0, len(tensor))
    return _slice(_row_counts(tensor))


def _row_counts(tensor: Tensor) -> list[int]:
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(own) for _ in range(processes.count())]
    dist.all_gather(counts, own)
    return [int(count) for count in torch.cat(counts).tolist()]


def _slice(counts: list[int]) -> slice:
    start = sum(counts[: dist.get_rank()])
    return slice(start, start + counts[dist.get_rank()])


def _gather(tensor: Tensor, counts: list[int]) -> Tensor:
    # all_gather wants equal shapes: pad to the longest, cut afterwards.
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _MultiplyGradient(torch.autograd.Function):
    """The same values; the gradient times the number of processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * processes.count()
