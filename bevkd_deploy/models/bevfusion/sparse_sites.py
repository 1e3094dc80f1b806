"""Filled cells of a 3-D grid, and which of them meet in a convolution.

A rulebook lists, for each kernel offset, the pairs (input row, output row) whose cells are that offset apart. It
belongs to the sites, not to a layer: every layer of the same kernel on the same sites uses the one rulebook, so no key
can name the wrong one. Source of the method: Graham et al. 2018 (arXiv 1711.10275), Yan et al. 2018 (SECOND).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DataError

Triple = tuple[int, int, int]


class Kernel(NamedTuple):
    """Geometry of a convolution along x, y, z.

    A submanifold one has outputs at its inputs' sites alone; its sizes are odd, its stride is 1 and its padding centres
    it. Any other one has an output wherever an input falls into its window.
    """

    size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    submanifold: bool = False

    @property
    def volume(self) -> int:
        """Number of offsets."""
        return self.size[0] * self.size[1] * self.size[2]


class Pairs(NamedTuple):
    """Rows that one kernel offset connects; no row occurs twice on either side.

    Attributes:
        offset: flat index into the kernel, z fastest.
        inputs, outputs: int64 [N].
    """

    offset: int
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class Rulebook:
    """What a convolution connects.

    Attributes:
        sites: the outputs' sites.
        pairs: of the offsets that connect anything.
        identity: the offset that connects each row with itself, which `pairs` then leaves out.
        input_rows: number of rows of the input.
    """

    sites: SparseSites
    pairs: list[Pairs]
    identity: int | None
    input_rows: int
    _neighbours: list[Tensor] = field(default_factory=list)

    def neighbours(self, kernel_volume: int) -> Tensor:
        """int64 [V_out, kernel volume]: the input row at each offset of an output, `input_rows` where there is none."""
        if not self._neighbours:
            count = self.sites.count
            table = self.sites.coordinates.new_full((kernel_volume, count), self.input_rows)
            if self.identity is not None:
                table[self.identity] = torch.arange(count, device=table.device)
            for offset, inputs, outputs in self.pairs:
                table[offset, outputs] = inputs
            self._neighbours.append(table.t().contiguous())
        return self._neighbours[0]


@dataclass(frozen=True, eq=False)
class SparseSites:
    """Filled cells of a batch of grids.

    Attributes:
        coordinates: int64 [4, V]: frame, x, y, z, in ascending order, none twice.
        shape: cells of the grid along x, y, z.
        frames: frames of the batch.
    """

    coordinates: Tensor
    shape: Triple
    frames: int
    _rulebooks: dict[Kernel, Rulebook] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """V, the number of sites."""
        return self.coordinates.shape[1]

    def rulebook(self, kernel: Kernel) -> Rulebook:
        """The rulebook of a kernel on these sites, made on its first call."""
        if kernel not in self._rulebooks:
            make = _submanifold_rulebook if kernel.submanifold else _strided_rulebook
            self._rulebooks[kernel] = make(self, kernel)
        return self._rulebooks[kernel]


def sort_sites(coordinates: Tensor, shape: Triple, frames: int) -> tuple[SparseSites, Tensor]:
    """Sites of given cells, and the order [V] that takes rows of the input to rows of the sites.

    Args:
        coordinates: integers [V, 4]: frame, x, y, z.
        shape: cells of the grid along x, y, z.
        frames: frames of the batch.

    Raises:
        DataError: cells lie outside of the grid or the batch, or occur twice.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.is_floating_point():
        raise DataError(
            f"voxel coordinates must be integers [V, 4] (frame, x, y, z), got {coordinates.dtype} "
            f"{list(coordinates.shape)}"
        )
    columns = coordinates.t().long().contiguous()
    limit = columns.new_tensor([frames, *shape])[:, None]
    outside = ((columns < 0) | (columns >= limit)).any(dim=0)
    key, order = torch.sort(_flat(columns, shape))
    problems = torch.stack([outside.sum(), (key[1:] == key[:-1]).sum()]).tolist()  # one wait for the device
    if problems[0]:
        raise DataError(
            f"{problems[0]} of {len(coordinates)} voxels lie outside of the grid {list(shape)} of {frames} frames; "
            "voxelize with the geometry of the network"
        )
    if problems[1]:
        raise DataError(f"{problems[1]} of {len(coordinates)} voxels occur twice; each cell may be given once")
    return SparseSites(columns[:, order], shape, frames), order


def _flat(columns: Tensor, shape: Triple) -> Tensor:
    """[4, V] -> flat cell [V], ascending as (frame, x, y, z) are."""
    frame, x, y, z = columns
    return ((frame * shape[0] + x) * shape[1] + y) * shape[2] + z


def _submanifold_rulebook(sites: SparseSites, kernel: Kernel) -> Rulebook:
    """Pairs of sites in each other's window.

    Offset k of a pair is offset -k of the reversed pair, so half of the offsets is looked up. Those of one column are
    neighbours in the order of the sites: one search a column finds the first of them, the others follow.
    """
    margin = [size // 2 for size in kernel.size]
    # With a margin around the grid no neighbour is another cell's, so the edges need no test.
    mx, my, mz = margin
    wide = (sites.shape[0] + 2 * mx, sites.shape[1] + 2 * my, sites.shape[2] + 2 * mz)
    frame, x, y, z = sites.coordinates
    key = _flat(torch.stack([frame, x + mx, y + my, z + mz]), wide)  # ascending
    columns = [(ox, oy) for ox in range(-mx, mx + 1) for oy in range(-my, my + 1) if (ox, oy) >= (0, 0)]
    shifts = key.new_tensor([(ox * wide[1] + oy) * wide[2] - mz for ox, oy in columns])
    wanted = key + shifts[:, None]  # [columns, V]: the lowest cell of the window's column
    place = torch.searchsorted(key, wanted)
    rows, hits = [], []
    last = max(sites.count - 1, 0)
    for _ in range(kernel.size[2]):
        hit = key[place.clamp_max(last)] == wanted
        rows.append(place)
        hits.append(hit)
        place = place + hit
        wanted = wanted + 1
    ahead = slice(mz + 1, None)  # of the window's own column, what lies above the centre
    hit = torch.stack(hits, dim=1).flatten(0, 1)[ahead]  # [offsets after the centre, V]
    neighbour = torch.stack(rows, dim=1).flatten(0, 1)[ahead]
    centre = kernel.volume // 2
    pairs = []
    counts = hit.sum(dim=1).tolist()
    here = hit.nonzero()[:, 1].split(counts)
    there = neighbour[hit].split(counts)
    for step, (near, far) in enumerate(zip(here, there, strict=True), start=1):
        if len(near):
            pairs += [Pairs(centre + step, far, near), Pairs(centre - step, near, far)]
    return Rulebook(sites, pairs, centre, sites.count)


def _strided_rulebook(sites: SparseSites, kernel: Kernel) -> Rulebook:
    """Pairs of a convolution whose outputs are wherever an input falls into the window."""
    frame, *axes = sites.coordinates
    shape, targets, valids = [], [], []
    for cell, cells, size, stride, padding in zip(axes, sites.shape, *kernel[:3], strict=True):
        shape.append((cells + 2 * padding - size) // stride + 1)
        start = cell + padding - torch.arange(size, device=cell.device)[:, None]  # [size, V]
        target = torch.div(start, stride, rounding_mode="floor")
        targets.append(target)
        valids.append((target * stride == start) & (target >= 0) & (target < shape[-1]))
    out_shape = (shape[0], shape[1], shape[2])
    x, y, z = targets
    hit = (valids[0][:, None, None] & valids[1][:, None] & valids[2]).flatten(0, 2)  # [offsets, V]
    key_x, key_y = (frame * shape[0] + x) * shape[1] * shape[2], y * shape[2]
    key = (key_x[:, None, None] + key_y[:, None] + z).flatten(0, 2)[hit]
    cells, outputs = torch.unique(key, return_inverse=True)
    column = cells // shape[2]
    coordinates = torch.stack(
        [column // (shape[0] * shape[1]), column // shape[1] % shape[0], column % shape[1], cells % shape[2]]
    )
    counts = hit.sum(dim=1).tolist()
    parts = zip(hit.nonzero()[:, 1].split(counts), outputs.split(counts), strict=True)
    pairs = [Pairs(offset, inputs, rows) for offset, (inputs, rows) in enumerate(parts) if len(inputs)]
    return Rulebook(SparseSites(coordinates, out_shape, sites.frames), pairs, None, sites.count)
