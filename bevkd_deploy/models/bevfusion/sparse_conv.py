"""Sparse 3-D convolution in plain torch: gather, matrix product, add, over a rulebook.

Deterministic on every device: nothing adds to one place from two threads. Weights are laid out as spconv 2 keeps them,
[out, kx, ky, kz, in], so that checkpoints load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bevkd_deploy.models.bevfusion.sparse_sites import Kernel, Pairs, Rulebook, SparseSites, Triple

#: Rows that a CPU gathers, multiplies and adds at once: what is needed on the way then stays in its cache.
_PIECE = 4096
#: Values that a GPU gathers at once (256 MiB in float32).
_GATHERED = 2**26


class SparseMap(Protocol):
    """Features at some cells of a grid, in one of the two backends.

    Attributes:
        features: [V, C].
    """

    @property
    def features(self) -> Tensor: ...  # noqa: D102

    def with_features(self, features: Tensor) -> SparseMap:
        """The same cells with other features [V, any]."""
        ...

    def convolve(self, weight: Tensor, kernel: Kernel) -> SparseMap:
        """Convolution with `weight` [out, kx, ky, kz, in]."""
        ...

    def cells(self) -> tuple[Tensor, Triple, int]:
        """Integer coordinates [4, V] (frame, x, y, z), shape of the grid, frames of the batch."""
        ...


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features [V, C] at sorted sites: the backend in plain torch."""

    features: Tensor
    sites: SparseSites

    def with_features(self, features: Tensor) -> SparseTensor:
        """The same sites with other features [V, any]."""
        return replace(self, features=features)

    def convolve(self, weight: Tensor, kernel: Kernel) -> SparseTensor:
        """Convolution with `weight` [out, kx, ky, kz, in]."""
        rulebook = self.sites.rulebook(kernel)
        features: Tensor = _Convolution.apply(self.features, weight, rulebook)
        return SparseTensor(features, rulebook.sites)

    def cells(self) -> tuple[Tensor, Triple, int]:
        """Coordinates int64 [4, V] (frame, x, y, z), shape of the grid, frames of the batch."""
        return self.sites.coordinates, self.sites.shape, self.sites.frames


class SparseConv3d(nn.Module):
    """Sparse convolution without bias; `weight` is [out, kx, ky, kz, in]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(out_channels, *kernel.size, in_channels))
        # As nn.Conv3d starts, whose fan-in this layout hides from torch.nn.init.
        bound = 1 / math.sqrt(in_channels * kernel.volume)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: SparseMap) -> SparseMap:
        """[V, in] at the input's sites -> [V', out] at the output's."""
        return x.convolve(self.weight, self.kernel)


def submanifold_conv3d(in_channels: int, out_channels: int) -> SparseConv3d:
    """A 3x3x3 convolution whose outputs are at its inputs' sites."""
    return SparseConv3d(in_channels, out_channels, Kernel((3, 3, 3), padding=(1, 1, 1), submanifold=True))


class _Convolution(torch.autograd.Function):
    """features [V_in, in], weight [out, kx, ky, kz, in] -> [V_out, out]."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rulebook = rulebook
        matrices = weight.flatten(1, 3).permute(1, 2, 0).contiguous()  # [K, in, out]
        if features.is_cuda:
            return convolve_by_output(features, matrices, rulebook)
        return convolve_by_offset(features, matrices, rulebook)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        rulebook: Rulebook = ctx.rulebook
        grad = grad.contiguous()
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            back = [Pairs(offset, outputs, inputs) for offset, inputs, outputs in rulebook.pairs]
            matrices = weight.flatten(1, 3).transpose(0, 1).contiguous()  # [K, out, in]
            grad_features = _add_products(grad, matrices, back, rulebook.identity, rulebook.input_rows)
        if ctx.needs_input_grad[1]:
            by_offset = torch.zeros_like(weight).flatten(1, 3)  # [out, K, in]
            if rulebook.identity is not None:
                by_offset[:, rulebook.identity] = grad.t() @ features
            for offset, inputs, outputs in rulebook.pairs:
                by_offset[:, offset] = grad.index_select(0, outputs).t() @ features.index_select(0, inputs)
            grad_weight = by_offset.view_as(weight)
        return grad_features, grad_weight, None


def convolve_by_offset(features: Tensor, matrices: Tensor, rulebook: Rulebook) -> Tensor:
    """Convolution offset by offset: only pairs that exist are multiplied, which a CPU's time goes into.

    Args:
        features: [V_in, in].
        matrices: [kernel volume, in, out].
        rulebook: what to connect.

    Returns:
        [V_out, out].
    """
    return _add_products(features, matrices, rulebook.pairs, rulebook.identity, rulebook.sites.count)


def convolve_by_output(features: Tensor, matrices: Tensor, rulebook: Rulebook) -> Tensor:
    """The same by one product an output row, zeros where a neighbour is missing: few launches, which a GPU waits for.

    Arguments and result are those of `convolve_by_offset`; rounding differs.
    """
    volume, in_channels, out_channels = matrices.shape
    padded = torch.cat([features, features.new_zeros(1, in_channels)])
    matrix = matrices.flatten(0, 1)  # [K * in, out]
    neighbours = rulebook.neighbours(volume)
    out = features.new_empty(len(neighbours), out_channels)
    rows = max(_GATHERED // len(matrix), 1)
    for piece, target in zip(neighbours.split(rows), out.split(rows), strict=True):
        gathered = padded.index_select(0, piece.flatten()).view(len(piece), len(matrix))
        torch.mm(gathered, matrix, out=target)
    return out


def _add_products(
    features: Tensor, matrices: Tensor, pairs: Iterable[Pairs], identity: int | None, rows: int
) -> Tensor:
    """Sum over pairs of `features[input] @ matrices[offset]` at the outputs, [rows, out].

    An output occurs once an offset, and offsets follow one another: each addition has one writer, in a fixed order.
    """
    _, in_channels, out_channels = matrices.shape
    out = features.new_zeros(rows, out_channels) if identity is None else features @ matrices[identity]
    piece = _PIECE if features.device.type == "cpu" else max(rows, len(features), 1)
    # Reused: fresh memory for each product costs as much as the product's additions.
    gathered, product = features.new_empty(piece, in_channels), features.new_empty(piece, out_channels)
    for offset, inputs, outputs in pairs:
        for source, target in zip(inputs.split(piece), outputs.split(piece), strict=True):
            count = len(source)
            torch.index_select(features, 0, source, out=gathered[:count])
            torch.mm(gathered[:count], matrices[offset], out=product[:count])
            out.index_add_(0, target, product[:count])
    return out
