"""Bringing a teacher's BEV map onto the student's grid, in metres, and its classes into the student's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.recipe_distill import TapLayoutConfig
from bevkd_deploy.geometry.grid import BevGrid, BevLayout

#: Relative tolerance of two cell sizes that should be one: a map has whole cells, a range is written with few digits.
_CELL_TOLERANCE = 1e-3


def tap_layout(
    tap: str, shape: Sequence[int], network: BevLayout, declared: TapLayoutConfig | None = None
) -> BevLayout:
    """What one tapped map covers: as declared, else the range of its network in as many cells as the map has.

    Args:
        tap: what messages call it.
        shape: of the map, [B, C, ., .].
        network: range and axis order of the network's BEV maps.
        declared: the recipe's words on this tap, where it has any.

    Raises:
        UsageError: the map has other axes, or its shape contradicts the range, the cell size or the axis order.
    """
    if len(shape) != 4:
        raise UsageError(f"{tap} has shape {list(shape)}; a BEV map has four axes: batch, channels and the grid")
    declared = declared or TapLayoutConfig()
    x_range_m = declared.x_range_m or network.grid.x_range_m
    y_range_m = declared.y_range_m or network.grid.y_range_m
    order = declared.axis_order or network.axis_order
    rows, columns = (shape[2], shape[3]) if order == "yx" else (shape[3], shape[2])
    x_cell_m, y_cell_m = (x_range_m[1] - x_range_m[0]) / columns, (y_range_m[1] - y_range_m[0]) / rows
    covers = f"x {x_range_m[0]:g}..{x_range_m[1]:g} m and y {y_range_m[0]:g}..{y_range_m[1]:g} m in {order} order"
    if not _equal(x_cell_m, y_cell_m):
        raise UsageError(
            f"{tap}: a map of {shape[2]}x{shape[3]} over {covers} has cells of {x_cell_m:.4g} x {y_cell_m:.4g} "
            "m, expected squares. Declare its x_range_m, y_range_m or axis_order in the loss's layout sections"
        )
    if declared.cell_m is not None and not _equal(x_cell_m, declared.cell_m):
        raise UsageError(
            f"{tap}: a map of {shape[2]}x{shape[3]} over {covers} has cells of {x_cell_m:.4g} m, but its layout "
            f"declares cell_m {declared.cell_m:g}"
        )
    return BevLayout(BevGrid(x_range_m, y_range_m, x_cell_m), order)


def to_yx(bev_map: Tensor, layout: BevLayout) -> Tensor:
    """A map in its own axis order -> [B, C, Y, X]."""
    return bev_map.transpose(-1, -2) if layout.axis_order == "xy" else bev_map


def align(
    teacher_map: Tensor,
    teacher: BevLayout,
    student: BevLayout,
    outside: float = 0.0,
    pool: Literal["mean", "max"] = "mean",
) -> Tensor:
    """Resample a map at the student's cell centres, in metres.

    Positions outside the teacher's range read `outside`. Maps on the same grid are returned as they are. A map of
    another resolution than its grid says (a deeper level) keeps its range; only its cell size is larger. Where the
    student's cells hold several of the teacher's, these are pooled first, so that none goes unseen.

    Convention: `align_corners=False`; the edges of the range are edges of cells.

    Args:
        teacher_map: [B, C, ., .] in the teacher's axis order.
        teacher: range and axis order of the map; its cell size follows from the map's shape.
        student: the grid to read at.
        outside: value where the teacher sees nothing.
        pool: "mean" for features, "max" where a peak must keep its height (heatmaps).

    Returns:
        [B, C, Y, X] on the student's grid, whatever the student's own axis order is (see `to_yx`); float32 where it
        was resampled.
    """
    teacher_map = to_yx(teacher_map, teacher)
    rows, columns = student.grid.shape_yx
    same_range = (teacher.grid.x_range_m, teacher.grid.y_range_m) == (student.grid.x_range_m, student.grid.y_range_m)
    if same_range and tuple(teacher_map.shape[-2:]) == (rows, columns):
        return teacher_map
    (x0, x1), (y0, y1) = teacher.grid.x_range_m, teacher.grid.y_range_m
    centers = torch.as_tensor(student.grid.cell_centers(), dtype=torch.float32, device=teacher_map.device)
    low, high = centers.new_tensor([x0, y0]), centers.new_tensor([x1, y1])
    inside = ((centers >= low) & (centers <= high)).all(dim=-1).reshape(1, 1, rows, columns)
    source, extent_m = _pooled(teacher_map.float(), (x1 - x0, y1 - y0), student.grid.cell_m, pool)
    # align_corners=False: -1 and 1 are the outer edges of the range, as the grid's convention has them.
    sampling = ((centers - low) / centers.new_tensor(extent_m) * 2 - 1).reshape(1, rows, columns, 2)
    sampling = sampling.expand(teacher_map.shape[0], -1, -1, -1)
    # Border padding: the outer half of a coarse edge cell lies inside the range and must not fade towards zero.
    sampled = torch.nn.functional.grid_sample(
        source, sampling, mode="bilinear", padding_mode="border", align_corners=False
    )
    return torch.where(inside, sampled, outside)


def class_order(teacher: tuple[str, ...], student: tuple[str, ...]) -> list[int]:
    """For each student class, its channel in the teacher's heatmap, by name.

    Raises:
        UsageError: the student has a class that the teacher does not know.
    """
    missing = [name for name in student if name not in teacher]
    if missing:
        raise UsageError(f"the teacher does not know classes {missing}; it knows {list(teacher)}")
    return [teacher.index(name) for name in student]


def _pooled(
    fine: Tensor, extent_m: tuple[float, float], cell_m: float, pool: Literal["mean", "max"]
) -> tuple[Tensor, tuple[float, float]]:
    """A map [B, C, Y, X] in cells at most `cell_m` wide, and the metres (x, y) that it covers from its lower edges."""
    rows, columns = fine.shape[-2:]
    # A ratio of 3 that comes out as 2.9999 is 3.
    steps = [int(cell_m * cells / extent + 1e-3) for extent, cells in zip(extent_m, (columns, rows), strict=True)]
    x_step, y_step = max(steps[0], 1), max(steps[1], 1)
    if (x_step, y_step) == (1, 1):
        return fine, extent_m
    kernel = (y_step, x_step)
    if pool == "max":
        coarse = torch.nn.functional.max_pool2d(fine, kernel, ceil_mode=True)
    else:
        coarse = torch.nn.functional.avg_pool2d(fine, kernel, ceil_mode=True, count_include_pad=False)
    # The last cells may reach beyond the range: a whole cell is a whole cell.
    x_cells, y_cells = coarse.shape[-1] * x_step, coarse.shape[-2] * y_step
    return coarse, (extent_m[0] * x_cells / columns, extent_m[1] * y_cells / rows)


def _equal(cell_m: float, other_m: float) -> bool:
    return abs(cell_m - other_m) <= _CELL_TOLERANCE * max(cell_m, other_m)
