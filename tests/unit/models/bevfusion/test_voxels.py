"""Voxels against the rule written out point by point. Against mmcv's operator: tests/mmdet3d/test_voxels.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.voxels import Voxelization, Voxels


def geometry(**changes: Any) -> BevFusionGeometry:
    """8 x 6 x 4 voxels."""
    grid = {"range_m": (-4.0, -3.0, -1.0, 4.0, 3.0, 1.0), "voxel_size_m": (1.0, 1.0, 0.5)}
    camera = {"bev_stride": 2, "camera_cell_m": 1.0}
    return BevFusionGeometry(**{**grid, **camera, "max_points": 3, "max_voxels": 20, **changes})


def by_hand(frames: list[Tensor], grid: BevFusionGeometry) -> Voxels:
    """Point after point, as the rule says."""
    rows: list[tuple[int, tuple[int, ...], list[Tensor]]] = []
    for frame, cloud in enumerate(frames):
        voxels: dict[tuple[int, ...], list[Tensor]] = {}
        for point in cloud:
            cell = (point[:3] - torch.tensor(grid.range_m[:3])) / torch.tensor(grid.voxel_size_m)
            if not all(0 <= value < cells for value, cells in zip(cell.tolist(), grid.grid_size, strict=True)):
                continue
            key = tuple(int(value) for value in cell)
            if key not in voxels and len(voxels) == grid.max_voxels:
                continue
            if len(voxels.setdefault(key, [])) < grid.max_points:
                voxels[key].append(point)
        rows += [(frame, key, points) for key, points in voxels.items()]
    padded = torch.zeros(len(rows), grid.max_points, frames[0].shape[1])
    for row, (_, _, points) in enumerate(rows):
        padded[row, : len(points)] = torch.stack(points)
    return Voxels(
        padded,
        torch.tensor([key for _, key, _ in rows]).view(-1, 3),
        torch.tensor([len(points) for _, _, points in rows], dtype=torch.int64),
        torch.tensor([frame for frame, _, _ in rows], dtype=torch.int64),
    )


def cloud(points: int, seed: int) -> Tensor:
    """Points in and around the grid, every fourth on the corner of a voxel, so that the edges of the range occur."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(points, 3, generator=generator) * torch.tensor([3.0, 2.0, 0.7])
    xyz[::4] = (xyz[::4] * 2).round() / 2
    return torch.cat([xyz, torch.rand(points, 2, generator=generator)], dim=1)


def batch(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Frames filled up with rows that would be voxels of their own if they were taken for points."""
    longest = max(len(frame) for frame in frames)
    points = torch.zeros(len(frames), longest, 5)
    for row, frame in zip(points, frames, strict=True):
        row[: len(frame)] = frame
    return points, torch.tensor([len(frame) for frame in frames])


@pytest.mark.parametrize("max_voxels", [20, 500], ids=["too many voxels", "all voxels"])
def test_voxels_are_those_of_the_rule(max_voxels: int) -> None:
    grid = geometry(max_voxels=max_voxels)
    frames = [cloud(400, 0), cloud(0, 1), cloud(700, 2), cloud(3, 3)]
    ours = Voxelization(grid)(*batch(frames))
    expected = by_hand(frames, grid)
    for ours_part, expected_part in zip(ours, expected, strict=True):
        assert torch.equal(ours_part, expected_part)
    # Both limits were met: the case is what it is meant to be.
    assert int(ours.counts.max()) == grid.max_points
    per_frame = torch.bincount(ours.frame, minlength=4)
    assert per_frame[1] == 0 and 0 < per_frame[3] <= 3
    assert (int(per_frame.max()) == max_voxels) == (max_voxels == 20)


def test_the_range_holds_its_lower_edges_alone() -> None:
    low, high = [-4.0, -3.0, -1.0], [4.0, 3.0, 1.0]
    inside = [low, [0.0, 0.0, 0.0], [-1e-7, 2.9999, 0.9999]]
    outside = [high, [4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [-4.0001, 0.0, 0.0], [torch.nan, 0.0, 0.0]]
    points = torch.tensor(inside + outside)[None]
    voxels = Voxelization(geometry())(points, torch.tensor([points.shape[1]]))
    # In float32, -1e-7 + 4 is 4: in the cell that begins there.
    assert voxels.coordinates.tolist() == [[0, 0, 0], [4, 3, 2], [4, 5, 3]]


def test_the_mean_is_over_a_voxel_s_points() -> None:
    points = torch.tensor([[0.2, 0.2, 0.1, 4.0], [0.4, 0.4, 0.3, 8.0], [1.5, 0.5, 0.2, 6.0]])[None]
    voxels = Voxelization(geometry())(points, torch.tensor([3]))
    assert voxels.counts.tolist() == [2, 1]
    torch.testing.assert_close(voxels.mean(), torch.tensor([[0.3, 0.3, 0.2, 6.0], [1.5, 0.5, 0.2, 6.0]]))
    assert voxels.frame_coordinates().tolist() == [[0, 4, 3, 2], [0, 5, 3, 2]]


@pytest.mark.parametrize("rows", [0, 5])
def test_without_points_there_are_no_voxels(rows: int) -> None:
    voxels = Voxelization(geometry())(torch.zeros(2, rows, 5), torch.tensor([0, 0]))
    assert voxels.points.shape == (0, 3, 5)
    assert voxels.frame_coordinates().shape == (0, 4)
    assert voxels.mean().shape == (0, 5)


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(3, 5), torch.tensor([3]), r"points must be float32 \[B, P, F\].*\[3, 5\]"),
        (torch.zeros(1, 3, 5, dtype=torch.float64), torch.tensor([3]), "points must be float32.*float64"),
        (torch.zeros(2, 3, 5), torch.tensor([3]), r"point_count must be \[2\].*\[1\]"),
    ],
)
def test_other_shapes_are_refused(points: Tensor, count: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Voxelization(geometry())(points, count)
