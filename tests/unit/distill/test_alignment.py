"""Maps of other grids: what lies at a place in metres lies there after alignment too."""

from __future__ import annotations

import pytest
import torch

from bevkd_deploy.distill.alignment import BevLayout, align
from bevkd_deploy.geometry.grid import BevGrid

STUDENT = BevLayout(BevGrid((-16.0, 16.0), (-12.0, 12.0), 2.0))  # 12 rows, 16 columns


def linear(grid: BevGrid) -> torch.Tensor:
    """Two channels: x and y of the cell centre."""
    rows, columns = grid.shape_yx
    centers = torch.as_tensor(grid.cell_centers(), dtype=torch.float32)
    return centers.T.reshape(1, 2, rows, columns).repeat(2, 1, 1, 1)


def test_the_same_grid_is_left_alone() -> None:
    teacher_map = torch.randn(2, 3, 12, 16)
    assert align(teacher_map, STUDENT, STUDENT) is teacher_map


@pytest.mark.parametrize(
    "teacher",
    [
        BevGrid((-16.0, 16.0), (-12.0, 12.0), 1.0),  # finer
        BevGrid((-16.0, 16.0), (-12.0, 12.0), 4.0),  # coarser
        BevGrid((-20.0, 24.0), (-14.0, 18.0), 1.0),  # another range, not symmetric
        BevGrid((-20.0, 24.0), (-14.0, 18.0), 2.0),
    ],
)
def test_positions_in_metres_are_kept(teacher: BevGrid) -> None:
    """Bilinear sampling of x and y gives x and y again, wherever four teacher cells surround the place."""
    aligned = align(linear(teacher), BevLayout(teacher), STUDENT)
    assert aligned.shape == (2, 2, 12, 16)
    expected = linear(STUDENT.grid)
    half = teacher.cell_m / 2
    x, y = expected[0]
    inner = (x >= teacher.x_range_m[0] + half) & (x <= teacher.x_range_m[1] - half)
    inner &= (y >= teacher.y_range_m[0] + half) & (y <= teacher.y_range_m[1] - half)
    assert inner.float().mean() > 0.6
    assert torch.allclose(aligned[:, :, inner], expected[:, :, inner], atol=1e-4)


def test_a_peak_off_the_diagonal_lands_on_its_place() -> None:
    teacher = BevGrid((-24.0, 24.0), (-20.0, 20.0), 1.0)
    teacher_map = torch.zeros(1, 1, 40, 48)
    # The student's cell of row 4, column 10 spans x 4..6 and y -4..-2: rows 16, 17 and columns 28, 29 here.
    teacher_map[0, 0, 16:18, 28:30] = 1.0
    aligned = align(teacher_map, BevLayout(teacher), STUDENT)
    expected = torch.zeros(1, 1, 12, 16)
    expected[0, 0, 4, 10] = 1.0
    assert torch.allclose(aligned, expected, atol=1e-5)


def test_maps_drawn_x_first_are_turned() -> None:
    drawn = torch.zeros(1, 1, 16, 12)
    drawn[0, 0, 10, 4] = 1.0
    turned = align(drawn, BevLayout(STUDENT.grid, "xy"), STUDENT)
    assert turned.shape == (1, 1, 12, 16)
    assert turned[0, 0].argmax() == 4 * 16 + 10
    finer = BevGrid((-16.0, 16.0), (-12.0, 12.0), 1.0)
    drawn = linear(finer).transpose(-1, -2)
    inner = align(drawn, BevLayout(finer, "xy"), STUDENT)
    assert torch.allclose(inner, linear(STUDENT.grid), atol=1e-4)


def test_a_deeper_level_keeps_its_range() -> None:
    """A map of half the resolution that its grid says covers the same metres."""
    deeper = linear(BevGrid((-16.0, 16.0), (-12.0, 12.0), 4.0))
    aligned = align(deeper, STUDENT, STUDENT)
    assert torch.allclose(aligned[:, :, 1:-1, 1:-1], linear(STUDENT.grid)[:, :, 1:-1, 1:-1], atol=1e-4)


def test_coarse_edge_cells_do_not_fade() -> None:
    coarse = BevGrid((-16.0, 16.0), (-12.0, 12.0), 8.0)
    aligned = align(torch.full((1, 1, 3, 4), 5.0), BevLayout(coarse), STUDENT)
    assert torch.allclose(aligned, torch.full((1, 1, 12, 16), 5.0))


def test_outside_the_teachers_range_is_zero_or_what_is_asked_for() -> None:
    ahead = BevGrid((0.0, 16.0), (-12.0, 12.0), 2.0)
    aligned = align(torch.ones(1, 1, 12, 8), BevLayout(ahead), STUDENT)
    assert not aligned[..., :8].any()
    assert torch.allclose(aligned[..., 8:], torch.ones(1, 1, 12, 8))
    floor = align(torch.ones(1, 1, 12, 8), BevLayout(ahead), STUDENT, outside=-20.0)
    assert (floor[..., :8] == -20).all()
    assert torch.equal(floor[..., 8:], aligned[..., 8:])
