"""Training targets of the CenterPoint-style head, in NumPy (arXiv 2006.11275, section 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.grid import BevGrid

#: Objects a frame can teach; nuScenes frames stay far below.
MAX_OBJECTS = 256
_MIN_OVERLAP = 0.1


def center_targets(
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    spec: GraphSpec,
    min_radius_cells: int,
    heights: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[Any]]:
    """Heatmap and per-object regression targets.

    Args:
        boxes: [N, 9], the (augmented) lidar frame; velocity may be NaN.
        labels: [N], index into `spec.classes`.
        spec: BEV geometry.
        min_radius_cells: smallest Gaussian.
        heights: [N], top of each Gaussian; None: 1, which the detection loss takes as an object's centre.

    Returns:
        heatmap float32 [K, Y, X]; cell int64 [O] flat index; label int64 [O], -1 for padding; values float32 [O, 10] in
        the order of the head's maps (offset x, offset y, z, log l, log w, log h, sin, cos, vx, vy); mask float32
        [O, 10], 0 for padding and for unknown velocity.
    """
    grid = BevGrid.bev(spec)
    rows, columns = grid.shape_yx
    heatmap = np.zeros((len(spec.classes), rows, columns), dtype=np.float32)
    cell = np.zeros(MAX_OBJECTS, dtype=np.int64)
    label = np.full(MAX_OBJECTS, -1, dtype=np.int64)
    values = np.zeros((MAX_OBJECTS, 10), dtype=np.float32)
    mask = np.zeros((MAX_OBJECTS, 10), dtype=np.float32)
    index, inside = grid.locate(boxes[:, :2])
    keep = np.flatnonzero(inside)[:MAX_OBJECTS]
    coordinates = grid.to_cells(boxes[:, :2])
    for slot, row in enumerate(keep):
        x, y = int(index[row] % columns), int(index[row] // columns)
        radius = max(min_radius_cells, int(gaussian_radius(boxes[row, 3:5] / grid.cell_m)))
        _draw_gaussian(heatmap[labels[row]], x, y, radius, 1.0 if heights is None else float(heights[row]))
        cell[slot], label[slot] = index[row], labels[row]
        values[slot, :2] = coordinates[row] - (x, y)
        values[slot, 2] = boxes[row, 2]
        values[slot, 3:6] = np.log(boxes[row, 3:6])
        values[slot, 6:8] = np.sin(boxes[row, 6]), np.cos(boxes[row, 6])
        velocity = boxes[row, 7:9]
        values[slot, 8:] = np.nan_to_num(velocity)
        mask[slot, :8] = 1.0
        mask[slot, 8:] = np.isfinite(velocity)
    return {"heatmap": heatmap, "cell": cell, "label": label, "values": values, "mask": mask}


def gaussian_radius(size_cells: NDArray[np.float64]) -> float:
    """Radius within which a shifted box still overlaps by 0.1 (CornerNet's smallest of three cases)."""
    length, width = size_cells
    cases = (
        (1.0, length + width, length * width * (1 - _MIN_OVERLAP) / (1 + _MIN_OVERLAP)),
        (4.0, 2 * (length + width), (1 - _MIN_OVERLAP) * length * width),
        (4 * _MIN_OVERLAP, -2 * _MIN_OVERLAP * (length + width), (_MIN_OVERLAP - 1) * length * width),
    )
    # As mmdet3d's gaussian_radius: (b + sqrt(b^2 - 4ac)) / 2, without the 1/a of the quadratic formula.
    return min((b + np.sqrt(max(b * b - 4 * a * c, 0.0))) / 2 for a, b, c in cases)


def _draw_gaussian(heatmap: NDArray[np.float32], x: int, y: int, radius: int, height: float) -> None:
    """Keep the maximum of the map and a Gaussian of sigma (2 r + 1) / 6 around a cell."""
    offsets = np.arange(-radius, radius + 1)
    sigma = (2 * radius + 1) / 6
    bump = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma * sigma)).astype(np.float32)
    bump *= np.float32(height)
    rows, columns = heatmap.shape
    left, right = min(x, radius), min(columns - x, radius + 1)
    top, bottom = min(y, radius), min(rows - y, radius + 1)
    window = heatmap[y - top : y + bottom, x - left : x + right]
    np.maximum(window, bump[radius - top : radius + bottom, radius - left : radius + right], out=window)
