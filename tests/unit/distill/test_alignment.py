"""Maps of other grids: what lies at a place in metres lies there after alignment too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.recipe_distill import TapLayoutConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.distill.alignment import align, tap_layout, to_yx
from bevkd_deploy.geometry.grid import BevGrid, BevLayout

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


CAR_AT_M = np.array([9.0, -5.0])  # off both diagonals


@pytest.mark.parametrize(
    "teacher",
    [
        {"pillar_size_m": 1.0, "stride": 2},  # the student's own grid
        {"pillar_size_m": 0.5, "stride": 2},
        {"pillar_size_m": 0.25, "stride": 2},  # four teacher cells along a student cell
        {"pillar_size_m": 1.0, "stride": 2, "range_m": (-24.0, -20.0, -3.0, 24.0, 20.0, 3.0)},
        {"pillar_size_m": 0.5, "stride": 4, "range_m": (-4.0, -12.0, -3.0, 20.0, 4.0, 3.0)},
    ],
)
@pytest.mark.parametrize("drawn", ["yx", "xy"])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_one_car_peaks_at_one_place(
    tiny_model_config: Callable[..., ModelConfig], teacher: dict[str, object], drawn: str, pool: str
) -> None:
    """The heatmap targets of one box on a teacher's and a student's grid, neither square, meet in metres."""
    box = np.array([[*CAR_AT_M, 0.0, 4.5, 1.9, 1.6, 0.3, 0.0, 0.0]])
    student_spec = tiny_model_config().graph_spec(("CAM_FRONT",))
    teacher_spec = tiny_model_config(**teacher).graph_spec(("CAM_FRONT",))
    maps = {}
    for name, spec in (("student", student_spec), ("teacher", teacher_spec)):
        heatmap = torch.from_numpy(center_targets(box, np.array([0]), spec, 1)["heatmap"])[None, :1]
        assert heatmap.shape[-1] != heatmap.shape[-2] and heatmap.max() == 1
        maps[name] = heatmap
    student = BevLayout(BevGrid.bev(student_spec))
    grid = BevGrid.bev(teacher_spec)
    as_drawn = maps["teacher"].transpose(-1, -2) if drawn == "xy" else maps["teacher"]
    layout = tap_layout("it", as_drawn.shape, BevLayout(grid), TapLayoutConfig(axis_order=drawn))
    assert layout == BevLayout(grid, drawn)
    aligned = align(as_drawn, layout, student, pool=pool)
    assert aligned.shape == maps["student"].shape
    assert peak_m(aligned, student) == peak_m(maps["student"], student)
    assert np.abs(np.subtract(peak_m(aligned, student), CAR_AT_M)).max() <= student.grid.cell_m / 2 + 1e-6

    wrong = BevLayout(grid, "yx" if drawn == "xy" else "xy")
    misread = align(as_drawn, wrong, student, pool=pool)
    assert np.linalg.norm(np.subtract(peak_m(misread, student), CAR_AT_M)) > student.grid.cell_m
    with pytest.raises(UsageError, match=f"in {wrong.axis_order} order has cells of .* expected squares"):
        tap_layout("it", as_drawn.shape, BevLayout(grid), TapLayoutConfig(axis_order=wrong.axis_order))


def peak_m(heatmap: torch.Tensor, layout: BevLayout) -> tuple[float, float]:
    x, y = layout.grid.cell_centers()[int(heatmap.flatten().argmax())]
    return float(x), float(y)


def test_a_student_drawn_x_first_is_turned_too() -> None:
    drawn = torch.zeros(1, 1, 16, 12)
    drawn[0, 0, 10, 4] = 1.0
    turned = to_yx(drawn, BevLayout(STUDENT.grid, "xy"))
    assert torch.equal(turned, align(turned, STUDENT, BevLayout(STUDENT.grid, "xy")))
    assert turned[0, 0].argmax() == 4 * 16 + 10
    assert to_yx(drawn, STUDENT) is drawn


def test_no_teacher_cell_goes_unseen() -> None:
    """Bilinear sampling alone reads four cells; of the nine in a student cell it would miss five."""
    fine = BevLayout(BevGrid((-18.0, 18.0), (-12.0, 12.0), 1.0))
    coarse = BevLayout(BevGrid((-18.0, 18.0), (-12.0, 12.0), 3.0))
    for row in range(3, 6):
        for column in range(6, 9):
            teacher_map = torch.zeros(1, 1, 24, 36)
            teacher_map[0, 0, row, column] = 9.0
            expected = torch.zeros(1, 1, 8, 12)
            expected[0, 0, 1, 2] = 1.0
            assert torch.allclose(align(teacher_map, fine, coarse), expected, atol=1e-5)
            assert torch.allclose(align(teacher_map, fine, coarse, pool="max"), 9 * expected, atol=1e-4)


def test_cells_left_over_at_the_edge_keep_their_place() -> None:
    """25 columns do not go into threes: the last pooled cell is narrower, and no other is moved by it."""
    fine = BevLayout(BevGrid((-15.0, 10.0), (-9.0, 9.0), 1.0))
    coarse = BevLayout(BevGrid((-15.0, 9.0), (-9.0, 9.0), 3.0))
    aligned = align(linear(fine.grid), fine, coarse)
    assert torch.allclose(aligned, linear(coarse.grid), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_places_stay_exact_under_autocast(dtype: torch.dtype) -> None:
    """Coordinates in half precision would be off by decimetres at 50 m."""
    far = BevLayout(BevGrid((-60.0, 60.0), (-40.0, 40.0), 1.0))
    near = BevLayout(BevGrid((-59.5, 59.5), (-39.5, 39.5), 1.0))
    expected = align(linear(far.grid), far, near)
    with torch.autocast("cpu", dtype):
        assert torch.equal(align(linear(far.grid), far, near), expected)
        assert align(torch.ones(1, 1, 80, 120, dtype=dtype), far, near).dtype == torch.float32
    assert align(torch.ones(1, 1, 80, 120, dtype=dtype), far, near).dtype == torch.float32  # and without autocast
