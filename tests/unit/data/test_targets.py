"""Targets of the head, worked out by hand on a grid of 12 rows and 16 columns of 2 m."""

from __future__ import annotations

import numpy as np
import pytest

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.targets import center_targets, gaussian_radius

BOX = [5.3, -3.1, -0.7, 4.0, 2.0, 1.5, 2.2, 1.5, -0.5]


def targets(spec: GraphSpec, boxes: list[list[float]], labels: list[int], radius: int = 2) -> dict[str, np.ndarray]:
    stacked = np.array(boxes, dtype=np.float64).reshape(-1, 9)
    return center_targets(stacked, np.array(labels, dtype=np.int64), spec, radius)


def test_one_object_off_the_diagonal(tiny_spec: GraphSpec) -> None:
    made = targets(tiny_spec, [BOX], [3])
    heatmap = made["heatmap"]
    assert heatmap.shape == (10, 12, 16)
    # Column (5.3 + 16) / 2 = 10.65, row (-3.1 + 12) / 2 = 4.45.
    assert np.argwhere(heatmap == 1).tolist() == [[3, 4, 10]]
    assert heatmap[[0, 1, 2, 4, 5, 6, 7, 8, 9]].max() == 0
    assert made["cell"][0] == 4 * 16 + 10
    assert made["label"].tolist() == [3] + [-1] * 255
    expected = [0.65, 0.45, -0.7, np.log(4), np.log(2), np.log(1.5), np.sin(2.2), np.cos(2.2), 1.5, -0.5]
    assert made["values"][0] == pytest.approx(expected, abs=1e-6)
    assert made["mask"][0].tolist() == [1.0] * 10
    assert not made["mask"][1:].any()
    assert {key: value.dtype.name for key, value in made.items()} == {
        "heatmap": "float32",
        "cell": "int64",
        "label": "int64",
        "values": "float32",
        "mask": "float32",
    }


def test_the_gaussian_has_sigma_of_a_sixth_of_its_width(tiny_spec: GraphSpec) -> None:
    around = targets(tiny_spec, [BOX], [3])["heatmap"][3, 1:8, 7:14]
    sigma = 5 / 6  # radius 2
    one, diagonal, two = (np.exp(-squared / (2 * sigma**2)) for squared in (1, 2, 4))
    assert around[3] == pytest.approx([0, two, one, 1, one, two, 0], abs=1e-6)
    assert around[:, 3] == pytest.approx([0, two, one, 1, one, two, 0], abs=1e-6)
    assert around[2, 2] == pytest.approx(diagonal, abs=1e-6)


def test_unknown_velocity_is_masked_alone(tiny_spec: GraphSpec) -> None:
    made = targets(tiny_spec, [[*BOX[:7], np.nan, np.nan]], [0])
    assert made["mask"][0].tolist() == [1.0] * 8 + [0.0, 0.0]
    assert np.isfinite(made["values"]).all()


def test_lower_edges_are_inside_and_upper_edges_are_not(tiny_spec: GraphSpec) -> None:
    corner, last = [-16.0, -12.0, *BOX[2:]], [15.99, 11.99, *BOX[2:]]
    outside = [[16.0, 0.0, *BOX[2:]], [0.0, 12.0, *BOX[2:]], [-16.01, 0.0, *BOX[2:]], [0.0, -12.01, *BOX[2:]]]
    made = targets(tiny_spec, [corner, *outside, last], [0, 1, 1, 1, 1, 2])
    assert np.argwhere(made["heatmap"] == 1).tolist() == [[0, 0, 0], [2, 11, 15]]
    assert made["mask"][:, 0].sum() == 2
    assert made["cell"][:2].tolist() == [0, 12 * 16 - 1]
    # Cut at the border, not wrapped around it: a quarter of the window remains.
    assert np.count_nonzero(made["heatmap"][0]) == np.count_nonzero(made["heatmap"][2]) == 9
    assert made["heatmap"][0, 0, 1] == made["heatmap"][2, 11, 14] == pytest.approx(np.exp(-0.72))


def test_overlapping_objects_of_a_class_keep_the_maximum(tiny_spec: GraphSpec) -> None:
    beside = [BOX[0] + 2, *BOX[1:]]
    made = targets(tiny_spec, [BOX, beside], [3, 3])
    apart = [targets(tiny_spec, [box], [3])["heatmap"] for box in (BOX, beside)]
    assert np.array_equal(made["heatmap"], np.maximum(*apart))
    assert made["cell"][:2].tolist() == [74, 75]


def test_large_objects_have_large_gaussians(tiny_spec: GraphSpec) -> None:
    long_bus = [0.1, 0.1, 0.0, 20.0, 20.0, 3.0, 0.0, 0.0, 0.0]  # 10 x 10 cells: radius 4
    heatmap = targets(tiny_spec, [long_bus], [3], radius=1)["heatmap"][3]
    assert np.argwhere(heatmap > 0).min(axis=0).tolist() == [2, 4]
    assert np.argwhere(heatmap > 0).max(axis=0).tolist() == [10, 12]
    assert heatmap[6, 9] == pytest.approx(np.exp(-1 / (2 * 1.5**2)))


@pytest.mark.parametrize(
    ("size_cells", "radius"),
    [
        # The smallest case: (-0.2 (l + w) + sqrt(0.04 (l + w)^2 + 1.44 l w)) / 2, as mmdet3d computes it.
        ((10.0, 10.0), (-4 + np.sqrt(16 + 144)) / 2),
        ((2.0, 1.0), 0.6),
        ((40.0, 1.0), (-8.2 + np.sqrt(67.24 + 57.6)) / 2),
        ((0.0, 0.0), 0.0),
    ],
)
def test_gaussian_radius(size_cells: tuple[float, float], radius: float) -> None:
    assert gaussian_radius(np.array(size_cells)) == pytest.approx(radius)
    assert gaussian_radius(np.array(size_cells[::-1])) == pytest.approx(radius)


def test_an_empty_frame_has_empty_targets(tiny_spec: GraphSpec) -> None:
    made = targets(tiny_spec, [], [])
    assert (made.pop("label") == -1).all()
    assert not any(value.any() for value in made.values())


def test_more_objects_than_slots_are_cut(tiny_spec: GraphSpec) -> None:
    made = targets(tiny_spec, [BOX] * 300, [1] * 300)
    assert made["mask"][:, 0].sum() == len(made["cell"]) == 256


def test_a_gaussian_may_be_lower_than_an_object(tiny_spec: GraphSpec) -> None:
    stacked, labels = np.array([BOX]), np.array([3])
    full = center_targets(stacked, labels, tiny_spec, 2)
    low = center_targets(stacked, labels, tiny_spec, 2, np.array([0.4]))
    assert low.pop("heatmap") == pytest.approx(0.4 * full.pop("heatmap"))
    assert all(np.array_equal(low[key], full[key]) for key in full)
