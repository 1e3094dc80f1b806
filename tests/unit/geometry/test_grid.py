"""The BEV grid on a non-square range: 10 m along x, 6 m along y."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.grid import BevGrid

GRID = BevGrid((-2.0, 8.0), (-3.0, 3.0), 0.5)


def test_rows_are_y_and_columns_are_x() -> None:
    assert GRID.shape_yx == (12, 20)


def test_centres_in_flat_order() -> None:
    centres = GRID.cell_centers()
    assert centres.shape == (240, 2)
    np.testing.assert_allclose(centres[0], [-1.75, -2.75])
    np.testing.assert_allclose(centres[1], [-1.25, -2.75])  # x runs fastest
    np.testing.assert_allclose(centres[20], [-1.75, -2.25])
    np.testing.assert_allclose(centres[-1], [7.75, 2.75])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_centre_lies_in_its_own_cell(dtype: type) -> None:
    index, inside = GRID.locate(GRID.cell_centers().astype(dtype))
    assert inside.all()
    np.testing.assert_array_equal(index, np.arange(240))


def test_off_diagonal_position_by_hand() -> None:
    index, inside = GRID.locate(np.array([[7.1, -2.6]]))
    assert inside[0]
    assert index[0] == 0 * 20 + 18  # row 0 (y -3.0..-2.5), column 18 (x 7.0..7.5)


def test_lower_edges_belong_to_the_grid_and_upper_edges_do_not() -> None:
    corners = np.array([[-2.0, -3.0], [8.0, 0.0], [0.0, 3.0], [-2.001, 0.0], [0.0, -3.001]])
    assert GRID.locate(corners)[1].tolist() == [True, False, False, False, False]


def test_outside_and_nan_are_outside_with_index_zero() -> None:
    index, inside = GRID.locate(np.array([[1e30, 0.0], [np.nan, 0.0], [0.0, -np.inf]]))
    assert not inside.any()
    assert index.tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 7.99), st.floats(-3, 2.99))
def test_located_cell_holds_the_position(x: float, y: float) -> None:
    index, inside = GRID.locate(np.array([[x, y]]))
    assert inside[0]
    column, row = GRID.to_cells(np.array([[x, y]]))[0]
    assert (index[0] % 20, index[0] // 20) == (int(column), int(row))


def test_flat_index_is_exact_beyond_what_float32_counts() -> None:
    big = BevGrid((0.0, 5000.0), (0.0, 5000.0), 1.0)  # 25 million cells; float32 counts to 16.8 million
    index, inside = big.locate(np.array([[4997.5, 4999.5]], dtype=np.float32))
    assert inside[0]
    assert index[0] == 4999 * 5000 + 4997  # odd: float32 knows only even numbers here


def test_grids_of_a_graph() -> None:
    spec = GraphSpec(
        cameras=("CAM_FRONT",),
        image_height_px=32,
        image_width_px=64,
        feature_stride=8,
        depth_min_m=1,
        depth_max_m=9,
        depth_bins=8,
        range_m=(-2.0, -3.0, -1.0, 8.0, 3.0, 3.0),
        pillar_size_m=0.25,
        bev_stride=2,
        heights_m=(0.0,),
        max_pillars=8,
        max_points=4,
        top_k=5,
    )
    assert BevGrid.pillars(spec).shape_yx == spec.pillar_shape_yx == (24, 40)
    assert BevGrid.bev(spec).shape_yx == spec.bev_shape_yx == (12, 20)
    assert BevGrid.bev(spec) == GRID
