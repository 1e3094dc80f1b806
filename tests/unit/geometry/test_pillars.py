"""Vectorised voxelization against a slow loop that follows the rule word by word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.pillars import voxelize

SPEC = GraphSpec(
    cameras=("CAM_FRONT",),
    image_height_px=32,
    image_width_px=64,
    feature_stride=8,
    depth_min_m=1,
    depth_max_m=9,
    depth_bins=8,
    range_m=(-2.0, -1.0, -1.0, 2.0, 1.0, 2.0),  # 8 columns, 4 rows
    pillar_size_m=0.5,
    bev_stride=2,
    heights_m=(0.0,),
    max_pillars=6,
    max_points=3,
    top_k=5,
)

clouds = st.integers(0, 60).flatmap(
    lambda count: hnp.arrays(np.float32, (count, 5), elements=st.floats(-2.5, 2.5, width=32))
)


def slow_voxelize(points: np.ndarray, spec: GraphSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """One point after the other: first come, first kept."""
    rows, columns = spec.pillar_shape_yx
    pillars = np.zeros((spec.max_pillars, spec.max_points, 5), np.float32)
    count = np.zeros(spec.max_pillars, np.int32)
    index = np.full(spec.max_pillars, rows * columns, np.int32)
    slots: dict[int, int] = {}
    dropped_cells: set[int] = set()
    dropped_points = 0
    cell_m = np.float32(spec.pillar_size_m)
    for point in points:
        column = int(np.floor((point[0] - np.float32(spec.range_m[0])) / cell_m))
        row = int(np.floor((point[1] - np.float32(spec.range_m[1])) / cell_m))
        in_height = spec.range_m[2] <= point[2] < spec.range_m[5]
        if not (0 <= column < columns and 0 <= row < rows and in_height):
            continue
        cell = row * columns + column
        if cell not in slots and len(slots) == spec.max_pillars:
            dropped_cells.add(cell)
            dropped_points += 1
            continue
        slot = slots.setdefault(cell, len(slots))
        index[slot] = cell
        if count[slot] == spec.max_points:
            dropped_points += 1
            continue
        pillars[slot, count[slot]] = point
        count[slot] += 1
    return pillars, count, index, len(dropped_cells), dropped_points


@settings(max_examples=100, deadline=None)
@given(clouds)
def test_equals_the_slow_loop(points: np.ndarray) -> None:
    pillars, count, index, dropped_pillars, dropped_points = slow_voxelize(points, SPEC)
    got = voxelize(points, SPEC)
    np.testing.assert_array_equal(got.pillars, pillars)
    np.testing.assert_array_equal(got.pillar_count, count)
    np.testing.assert_array_equal(got.pillar_index, index)
    assert (got.dropped_pillars, got.dropped_points) == (dropped_pillars, dropped_points)
    assert got.kept_pillars == np.count_nonzero(count)


def test_more_pillars_than_sixteen_bits_count_equal_the_slow_loop() -> None:
    spec = SPEC.model_copy(update={"max_pillars": 70_000, "max_points": 1})
    points = np.random.default_rng(0).uniform(-2.5, 2.5, (200, 5)).astype(np.float32)
    pillars, count, index, _, dropped_points = slow_voxelize(points, spec)
    got = voxelize(points, spec)
    np.testing.assert_array_equal(got.pillars, pillars)
    np.testing.assert_array_equal(got.pillar_count, count)
    np.testing.assert_array_equal(got.pillar_index, index)
    assert got.dropped_points == dropped_points > 0


def test_points_of_a_view_are_taken_as_they_are_seen() -> None:
    points = np.random.default_rng(0).uniform(-2.5, 2.5, (40, 7)).astype(np.float32)
    np.testing.assert_array_equal(
        voxelize(points[::2, 1:6], SPEC).pillars, voxelize(points[::2, 1:6].copy(), SPEC).pillars
    )


def test_no_points_make_padding_alone() -> None:
    got = voxelize(np.zeros((0, 5), np.float32), SPEC)
    assert not got.pillars.any()
    assert not got.pillar_count.any()
    assert got.pillar_index.tolist() == [SPEC.pillar_dump_index] * SPEC.max_pillars
    assert (got.kept_pillars, got.dropped_pillars, got.dropped_points) == (0, 0, 0)


def test_all_points_outside_make_padding_alone() -> None:
    got = voxelize(np.full((7, 5), 100.0, np.float32), SPEC)
    assert (got.kept_pillars, got.dropped_points) == (0, 0)


def test_lower_height_edge_belongs_to_the_range_and_the_upper_one_does_not() -> None:
    points = np.zeros((4, 5), np.float32)
    points[:, 2] = [-1.0, 2.0, np.nextafter(np.float32(2.0), np.float32(0.0)), -1.001]
    got = voxelize(points, SPEC)
    assert got.pillar_count[0] == 2
    np.testing.assert_array_equal(got.pillars[0, :2], points[[0, 2]])


def test_dtypes_are_the_graphs() -> None:
    got = voxelize(np.ones((1, 5)), SPEC)  # float64 in
    expected = {spec.name: (spec.dtype, spec.shape) for spec in SPEC.inputs()}
    for name in ("pillars", "pillar_count", "pillar_index"):
        array = getattr(got, name)
        assert (array.dtype.name, array.shape) == expected[name]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_points_are_refused_and_counted(value: float) -> None:
    points = np.ones((4, 5), np.float32)
    points[2, 3] = points[1, 0] = value
    with pytest.raises(DataError, match="2 of 4 points hold NaN"):
        voxelize(points, SPEC)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.ones((4, 4), np.float32), r"must be \[N, 5\].*got \[4, 4\]"),
        (np.ones(5, np.float32), r"must be \[N, 5\].*got \[5\]"),
        (np.ones((4, 5), np.int32), "floating-point.*int32"),
        ([[0.0] * 5], "floating-point.*list"),
    ],
)
def test_wrong_arrays_are_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        voxelize(points, SPEC)
