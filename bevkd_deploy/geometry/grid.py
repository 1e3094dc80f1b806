"""The one BEV grid: metric ranges and cell size; every shape is derived from them.

Convention: row = y, column = x, flat index = y * X + x; a cell holds its lower edges, not its upper ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sensor_spec import AxisOrder, SensorSpec


@dataclass(frozen=True)
class BevGrid:
    """A rectangular grid over the ground plane of the LiDAR frame.

    Attributes:
        x_range_m: (min, max).
        y_range_m: (min, max).
        cell_m: side of a square cell.
    """

    x_range_m: tuple[float, float]
    y_range_m: tuple[float, float]
    cell_m: float

    @classmethod
    def pillars(cls, spec: GraphSpec) -> BevGrid:
        """The pillar canvas of a graph."""
        x0, y0, _, x1, y1, _ = spec.range_m
        return cls((x0, x1), (y0, y1), spec.pillar_size_m)

    @classmethod
    def bev(cls, spec: GraphSpec | SensorSpec) -> BevGrid:
        """The BEV map of a network: heatmaps, fused features, camera tables."""
        x0, y0, _, x1, y1, _ = spec.range_m
        return cls((x0, x1), (y0, y1), spec.bev_cell_m)

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Rows (Y) and columns (X)."""
        rows = round((self.y_range_m[1] - self.y_range_m[0]) / self.cell_m)
        return rows, round((self.x_range_m[1] - self.x_range_m[0]) / self.cell_m)

    def cell_centers(self) -> NDArray[np.float64]:
        """Centres [Y * X, 2] in metres, in flat-index order."""
        rows, columns = self.shape_yx
        x = self.x_range_m[0] + (np.arange(columns) + 0.5) * self.cell_m
        y = self.y_range_m[0] + (np.arange(rows) + 0.5) * self.cell_m
        return np.stack([np.tile(x, rows), np.repeat(y, columns)], axis=-1)

    def to_cells(self, xy_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous (column, row) coordinates of positions [N, 2]; cell i covers [i, i + 1)."""
        origin_m = np.array([self.x_range_m[0], self.y_range_m[0]])
        cells: NDArray[np.float64] = (xy_m - origin_m) / self.cell_m
        return cells

    def locate(self, xy_m: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Flat cell index [N] of positions [N, 2] and whether each is inside; index is 0 where it is not."""
        rows, columns = self.shape_yx
        # In the points' own dtype: float32 clouds stay float32 (half the time of float64). Cells are counted in floats
        # too, which are exact up to 2^24 cells; beyond that in float64.
        scalar = xy_m.dtype.type
        x = np.floor((xy_m[:, 0] - scalar(self.x_range_m[0])) / scalar(self.cell_m))
        y = np.floor((xy_m[:, 1] - scalar(self.y_range_m[0])) / scalar(self.cell_m))
        inside = x >= 0
        inside &= x < columns
        inside &= y >= 0
        inside &= y < rows
        outside = np.flatnonzero(~inside)
        x[outside] = y[outside] = 0
        flat = y * columns + x if rows * columns <= 1 << 24 else y.astype(np.float64) * columns + x
        return flat.astype(np.int64), inside


@dataclass(frozen=True)
class BevLayout:
    """What a BEV map covers.

    Attributes:
        grid: metric range and cell size.
        axis_order: "yx" for [B, C, Y, X]; "xy" for maps drawn as [B, C, X, Y] (mmdet3d's BEVFusion heads).
    """

    grid: BevGrid
    axis_order: AxisOrder = "yx"

    @classmethod
    def of(cls, spec: GraphSpec | SensorSpec) -> BevLayout:
        """That of a network's BEV maps."""
        return cls(BevGrid.bev(spec), spec.axis_order)

    def __str__(self) -> str:
        (x0, x1), (y0, y1) = self.grid.x_range_m, self.grid.y_range_m
        return f"x {x0:g}..{x1:g} m, y {y0:g}..{y1:g} m, cell {self.grid.cell_m:.4g} m"
