"""Bringing a teacher's BEV map onto the student's grid, in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bevkd_deploy.geometry.grid import BevGrid


@dataclass(frozen=True)
class BevLayout:
    """What a BEV map covers.

    Attributes:
        grid: metric range and cell size.
        axis_order: "yx" for [B, C, Y, X]; "xy" for maps drawn as [B, C, X, Y] (mmdet3d's BEVFusion heads).
    """

    grid: BevGrid
    axis_order: Literal["yx", "xy"] = "yx"


def align(teacher_map: Tensor, teacher: BevLayout, student: BevLayout, outside: float = 0.0) -> Tensor:
    """Resample a teacher map [B, C, ., .] at the student's cell centres; the result is [B, C, Y, X].

    Positions outside the teacher's range read `outside`. Maps on the same grid are returned as they are. A map of
    another resolution than its grid says (a deeper level) keeps its range; only its cell size is larger.
    """
    if teacher.axis_order == "xy":
        teacher_map = teacher_map.transpose(-1, -2)
    rows, columns = student.grid.shape_yx
    same_range = (teacher.grid.x_range_m, teacher.grid.y_range_m) == (student.grid.x_range_m, student.grid.y_range_m)
    if same_range and tuple(teacher_map.shape[-2:]) == (rows, columns):
        return teacher_map
    centers = torch.as_tensor(student.grid.cell_centers(), dtype=torch.float32, device=teacher_map.device)
    low = centers.new_tensor([teacher.grid.x_range_m[0], teacher.grid.y_range_m[0]])
    high = centers.new_tensor([teacher.grid.x_range_m[1], teacher.grid.y_range_m[1]])
    # align_corners=False: -1 and 1 are the outer edges of the range, as the grid's convention has them.
    sampling = ((centers - low) / (high - low) * 2 - 1).reshape(1, rows, columns, 2)
    inside = (sampling.abs() <= 1).all(dim=-1)[:, None]
    sampling = sampling.expand(teacher_map.shape[0], -1, -1, -1)
    # Border padding: the outer half of a coarse edge cell lies inside the range and must not fade towards zero.
    sampled = torch.nn.functional.grid_sample(
        teacher_map.float(), sampling, mode="bilinear", padding_mode="border", align_corners=False
    )
    return torch.where(inside, sampled, outside)
