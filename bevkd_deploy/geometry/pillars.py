"""Hard voxelization of a point cloud into pillars, deterministic and vectorised.

Rule: pillars in order of first arrival, at most `max_pillars`; in each, the first `max_points` points in order of
arrival. What does not fit is dropped and counted. Source of the rule: mmcv's deterministic hard voxelization.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.grid import BevGrid


@dataclass(frozen=True, eq=False)
class Pillars:
    """Pillars padded to the graph's static shapes.

    Attributes:
        pillars: float32 [P, M, 5], zero-padded.
        pillar_count: int32 [P], points in each pillar, 0 for padding.
        pillar_index: int32 [P], `y * X + x`, or the dump row `Y * X` for padding.
        kept_pillars: how many rows are real.
        dropped_pillars: pillars beyond `max_pillars`.
        dropped_points: points in dropped pillars or beyond `max_points` of a kept one.
    """

    pillars: NDArray[np.float32]
    pillar_count: NDArray[np.int32]
    pillar_index: NDArray[np.int32]
    kept_pillars: int
    dropped_pillars: int
    dropped_points: int


def voxelize(points: NDArray[np.float32], spec: GraphSpec) -> Pillars:
    """Group points into pillars.

    Args:
        points: [N, 5] float32: x, y, z in metres (lidar frame), intensity, time lag in seconds.
        spec: ranges, sizes and capacities.

    Raises:
        DataError: points have another shape or hold non-finite values.
    """
    if not isinstance(points, np.ndarray) or not np.issubdtype(points.dtype, np.floating):
        got = points.dtype if isinstance(points, np.ndarray) else type(points).__name__
        raise DataError(f"points must be a floating-point array [N, 5], got {got}; convert them to float32")
    if points.ndim != 2 or points.shape[1] != 5:
        raise DataError(f"points must be [N, 5] (x, y, z, intensity, time lag), got {list(points.shape)}")
    points = points.astype(np.float32, copy=False)
    if not np.isfinite(points).all():
        bad = int(np.count_nonzero(~np.isfinite(points).all(axis=1)))
        raise DataError(f"{bad} of {len(points)} points hold NaN or infinite values; remove them before detection")
    rows, columns = spec.pillar_shape_yx
    cell, inside = BevGrid.pillars(spec).locate(points[:, :2])
    inside &= (points[:, 2] >= spec.range_m[2]) & (points[:, 2] < spec.range_m[5])
    arrivals = np.flatnonzero(inside)
    # Cell and arrival number in one key: a plain sort of unique keys is stable, and far faster than a stable argsort.
    key = np.sort((cell[arrivals] << 32) | arrivals)
    sorted_cell, order = key >> 32, key & 0xFFFFFFFF
    starts = np.flatnonzero(np.r_[True, sorted_cell[1:] != sorted_cell[:-1]]) if len(key) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(key)])
    # `order[starts]` is the arrival number of each pillar's first point: ranking it gives the order of first arrival.
    kept = np.argsort(order[starts])[: spec.max_pillars]
    slot = np.full(len(starts), -1, dtype=np.int64)
    slot[kept] = np.arange(len(kept))

    group = np.repeat(np.arange(len(starts)), sizes)
    rank = np.arange(len(key)) - np.repeat(starts, sizes)
    keep = (slot[group] >= 0) & (rank < spec.max_points)
    rows_of_points = np.zeros((spec.max_pillars * spec.max_points, 5), dtype=np.float32)
    rows_of_points[slot[group[keep]] * spec.max_points + rank[keep]] = points[order[keep]]
    count = np.zeros(spec.max_pillars, dtype=np.int32)
    count[: len(kept)] = np.minimum(sizes[kept], spec.max_points)
    index = np.full(spec.max_pillars, rows * columns, dtype=np.int32)
    index[: len(kept)] = sorted_cell[starts[kept]] if len(kept) else 0
    dropped_points = len(key) - int(count.sum())
    pillars = rows_of_points.reshape(spec.max_pillars, spec.max_points, 5)
    return Pillars(pillars, count, index, len(kept), len(starts) - len(kept), dropped_points)
