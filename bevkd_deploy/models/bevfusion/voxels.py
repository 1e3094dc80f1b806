"""Hard voxelization of point clouds, deterministic and vectorised, on any device.

Rule: voxels in order of first arrival, at most `max_voxels` a frame; in each, the first `max_points` points in order of
arrival. Source of the rule: mmcv's deterministic hard voxelization. Only sorts and gathers: nothing depends on the
order in which threads write.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry


class Voxels(NamedTuple):
    """Voxels of a batch, frame after frame; the first three are what mmdet3d's `pts_voxel_layer` gives for a frame.

    Attributes:
        points: float32 [V, M, F], points of each voxel, rows of zeros behind them.
        coordinates: int64 [V, 3], cells along x, y, z.
        counts: int64 [V], points in each voxel, at least 1.
        frame: int64 [V], which frame of the batch.
    """

    points: Tensor
    coordinates: Tensor
    counts: Tensor
    frame: Tensor

    def mean(self) -> Tensor:
        """Mean of each voxel's points, float32 [V, F]: mmdet3d's HardSimpleVFE, or `voxelize_reduce`."""
        return self.points.sum(dim=1) / self.counts[:, None].to(self.points.dtype)

    def frame_coordinates(self) -> Tensor:
        """int64 [V, 4]: frame, x, y, z, as the sparse encoder takes them."""
        return torch.cat([self.frame[:, None], self.coordinates], dim=1)


class Voxelization(nn.Module):
    """Groups the points of each frame into the voxels of a geometry; without parameters."""

    def __init__(self, geometry: BevFusionGeometry) -> None:
        super().__init__()
        self.geometry = geometry

    @torch.no_grad()
    def forward(self, points: Tensor, point_count: Tensor) -> Voxels:
        """Group the first `point_count[b]` points of frame b; what lies outside of the range is left out.

        Args:
            points: float32 [B, P, F], F >= 3: x, y, z in metres (lidar frame), then anything.
            point_count: int64 [B], how many rows of each frame are points.

        Raises:
            DataError: shapes or type are other ones.
        """
        if points.ndim != 3 or points.shape[2] < 3 or points.dtype != torch.float32:
            raise DataError(
                f"points must be float32 [B, P, F] that begin with x, y, z, got {points.dtype} {list(points.shape)}"
            )
        if point_count.shape != points.shape[:1]:
            raise DataError(f"point_count must be [{len(points)}], one a frame, got {list(point_count.shape)}")
        cell, inside = self._cells(points, point_count)
        flat = points.flatten(0, 1)
        arrival = inside.flatten().nonzero()[:, 0]  # rows of `flat`, in order of arrival, frame after frame
        begin, count, order, cell = self._by_arrival(cell.flatten()[arrival])
        slot = torch.arange(self.geometry.max_points, device=points.device)
        taken = slot < count[:, None]  # [V, M]
        place = torch.where(taken, begin[:, None] + slot, begin[:, None])
        filled = flat[arrival[order[place]]].masked_fill(~taken[..., None], 0.0)  # [V, M, F]
        frame, coordinates = self._coordinates(cell)
        return Voxels(filled, coordinates, count, frame)

    def _cells(self, points: Tensor, point_count: Tensor) -> tuple[Tensor, Tensor]:
        """Flat cell [B, P] of each point, frame by frame, and whether it is a point inside the range."""
        low = points.new_tensor(self.geometry.range_m[:3])
        grid = points.new_tensor(self.geometry.grid_size)
        # In float32 and by a division, as mmcv does it: a point on the edge of two voxels goes into the same one.
        cell = torch.floor((points[..., :3] - low) / points.new_tensor(self.geometry.voxel_size_m))
        inside = ((cell >= 0) & (cell < grid)).all(dim=-1)  # false for NaN
        slot = torch.arange(points.shape[1], device=points.device)
        inside &= slot < point_count[:, None]
        x, y, z = cell.masked_fill(~inside[..., None], 0.0).long().unbind(-1)
        frame = torch.arange(len(points), device=points.device)[:, None]
        nx, ny, nz = self.geometry.grid_size
        return ((frame * nx + x) * ny + y) * nz + z, inside

    def _by_arrival(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The voxels that are kept, in order of first arrival.

        Args:
            cell: [N] flat cells of the points, in order of arrival.

        Returns:
            where each voxel's points begin in the order by cell [V], how many it keeps [V], that order [N], its cell.
        """
        by_cell, order = torch.sort(cell, stable=True)
        is_first = torch.ones_like(by_cell, dtype=torch.bool)
        is_first[1:] = by_cell[1:] != by_cell[:-1]
        begin = is_first.nonzero()[:, 0]
        size = torch.diff(begin, append=begin.new_tensor([len(cell)]))
        arrived = torch.argsort(order[begin])  # of the stable sort, the first of a cell is the one that came first
        begin, size = begin[arrived], size[arrived]
        voxel_cell = by_cell[begin]
        nx, ny, nz = self.geometry.grid_size
        frame = voxel_cell // (nx * ny * nz)  # ascending
        rank = torch.arange(len(frame), device=cell.device) - torch.searchsorted(frame, frame)
        kept = rank < self.geometry.max_voxels
        count = size.clamp_max(self.geometry.max_points)
        return begin[kept], count[kept], order, voxel_cell[kept]

    def _coordinates(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Frame [V] and cells along x, y, z [V, 3] of flat cells."""
        nx, ny, nz = self.geometry.grid_size
        frame_x = cell // (ny * nz)
        xyz = torch.stack([frame_x % nx, cell // nz % ny, cell % nz], dim=1)
        return frame_x // nx, xyz
