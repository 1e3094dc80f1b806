"""Shapes: convex parts inside their boxes, outward planes, and the order in which they hide one another."""

from __future__ import annotations

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.data.synthetic.objects import BOX_LIFT_M, RIDER_HEIGHT_M, build_shape, sample_size
from bevkd_deploy.data.synthetic.painter import order_footprints, order_parts
from bevkd_deploy.data.synthetic.shapes import ShapeBuilder


@pytest.mark.parametrize("rider", [False, True])
@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_shape_fills_its_box_and_stays_inside(class_name: str, rider: bool) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        length, width, height = sample_size(class_name, rng)
        height += RIDER_HEIGHT_M * (rider and class_name in ("bicycle", "motorcycle"))
        shape = build_shape(class_name, (length, width, height), rng, rider=rider, worker=rider)
        points = shape.part_points.reshape(-1, 3)
        low, high = np.array([-length / 2, -width / 2, BOX_LIFT_M]), np.array([length / 2, width / 2, 0.0])
        high[2] = BOX_LIFT_M + height
        assert (points > low).all() and (points < high).all()
        assert ((points.max(axis=0) - points.min(axis=0)) / (high - low) > 0.7).all()


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_parts_are_convex_and_apart(class_name: str) -> None:
    rng = np.random.default_rng(2)
    shape = build_shape(class_name, sample_size(class_name, rng), rng)
    outside = np.einsum("pkc,pvc->pkv", shape.part_planes[..., :3], shape.part_points) - shape.part_planes[..., 3:]
    assert outside.max() < 1e-9  # every corner is within every plane of its part
    parts = len(shape.part_points)
    assert (np.abs(shape.order_planes[..., :3]).sum(axis=-1) > 0).sum() == parts * (parts - 1)
    for first in range(parts):
        for second in range(parts):
            if first != second:
                plane = shape.order_planes[first, second]
                assert (shape.part_points[first] @ plane[:3] <= plane[3] + 1e-6).all()
                assert (shape.part_points[second] @ plane[:3] >= plane[3] - 1e-6).all()


def test_faces_look_outwards_and_decals_lie_on_them() -> None:
    shape = (
        ShapeBuilder().box((0, 2), (0, 1), (0, 1), (10, 10, 10)).decal("left", (0.0, 0.25), (0.5, 1.0), (9, 9, 9))
    ).build()
    center = np.array([1.0, 0.5, 0.5])
    assert ((shape.face_points[:, 0] - center) * shape.face_normals).sum(axis=1).min() > 0
    decal = shape.face_points[-1, :4]
    # left is y = 1; u runs from the front (x = 2) backwards
    assert decal.min(axis=0).tolist() == [1.5, 1.0, 0.5]
    assert decal.max(axis=0).tolist() == [2.0, 1.0, 1.0]


def test_a_wheel_stands_upright_where_it_is_put() -> None:
    points = ShapeBuilder().wheel(1.0, 0.4, 0.3, (-0.1, 0.2), (0, 0, 0)).build().part_points[0]
    reach = 0.3 * np.cos(np.pi / 8)
    assert points.min(axis=0) == pytest.approx([1 - reach, -0.1, 0.4 - reach])
    assert points.max(axis=0) == pytest.approx([1 + reach, 0.2, 0.4 + reach])


def test_parts_are_painted_back_to_front() -> None:
    shape = ShapeBuilder().box((0, 1), (0, 1), (0, 1), (1, 1, 1)).box((2, 3), (0, 1), (0, 1), (1, 1, 1)).build()
    eyes = np.array([[-5.0, 0.5, 0.5], [8.0, 0.5, 0.5]])
    ranks = order_parts(np.stack([shape.order_planes] * 2), eyes)
    assert ranks[0, 0] > ranks[0, 1]  # seen from behind, the rear box hides the other
    assert ranks[1, 0] < ranks[1, 1]


def test_a_long_wall_whose_centre_is_nearer_is_still_painted_first() -> None:
    # a wall along the street, 8 m to the left, and a pedestrian in front of its far end
    boxes = np.array([[0.0, 8.0, 60.0, 1.0, 0.0], [25.0, 6.0, 0.7, 0.7, 0.3]])
    rank = order_footprints(boxes, np.array([0.0, 0.0]))
    assert rank.tolist() == [0, 1]
    behind = np.array([[0.0, 8.0, 60.0, 1.0, 0.0], [25.0, 10.0, 0.7, 0.7, 0.3]])
    assert order_footprints(behind, np.array([0.0, 0.0])).tolist() == [1, 0]


def test_a_row_of_boxes_is_painted_from_the_far_end() -> None:
    boxes = np.array([[x, 0.0, 1.0, 1.0, 0.1] for x in (12.0, 3.0, 9.0, 6.0)])
    assert order_footprints(boxes, np.array([0.0, 0.1])).tolist() == [0, 3, 1, 2]
