"""Boxes against hand-computed corners, and against moving their corners as points."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd_deploy.geometry.boxes import (
    BOX_EDGES,
    augment_boxes,
    box_corners,
    footprints_overlap,
    points_in_boxes,
    rows_in_boxes,
    transform_boxes,
    wrap_angle,
)
from bevkd_deploy.geometry.frames import invert, pose, transform_points, yaw_pose

# x, y, z, l, w, h, yaw, vx, vy
CAR = np.array([[10.0, -3.0, 0.5, 4.0, 2.0, 1.0, np.pi / 2, 0.0, 5.0]])

sides = st.floats(0.1, 20)
boxes = st.tuples(
    *[st.floats(-50, 50)] * 3, sides, sides, sides, st.floats(-3.1, 3.1), st.floats(-20, 20), st.floats(-20, 20)
).map(lambda values: np.array([values]))
yaws = st.floats(-3.1, 3.1)


def test_corners_by_hand() -> None:
    # Heading +y: front is +y, the left side is -x.
    bottom = [[9.0, -1.0], [11.0, -1.0], [11.0, -5.0], [9.0, -5.0]]
    expected = [[*xy, 0.0] for xy in bottom] + [[*xy, 1.0] for xy in bottom]
    np.testing.assert_allclose(box_corners(CAR)[0], expected, atol=1e-12)


def test_edges_are_the_twelve_sides() -> None:
    corners = box_corners(CAR)[0]
    lengths = sorted(np.linalg.norm(corners[a] - corners[b]) for a, b in BOX_EDGES)
    np.testing.assert_allclose(lengths, [1.0] * 4 + [2.0] * 4 + [4.0] * 4)


@settings(max_examples=50, deadline=None)
@given(boxes, yaws)
def test_moved_boxes_have_moved_corners(box: np.ndarray, yaw_rad: float) -> None:
    src2dst = yaw_pose(yaw_rad, [3.0, -7.0, 1.5])
    moved = transform_boxes(box, src2dst)
    np.testing.assert_allclose(box_corners(moved)[0], transform_points(src2dst, box_corners(box)[0]), atol=1e-9)
    np.testing.assert_allclose(moved[0, 7:9], src2dst[:2, :2] @ box[0, 7:9], atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(boxes, yaws)
def test_there_and_back(box: np.ndarray, yaw_rad: float) -> None:
    src2dst = yaw_pose(yaw_rad, [3.0, -7.0, 1.5])
    back = transform_boxes(transform_boxes(box, src2dst), invert(src2dst))
    back[0, 6] = box[0, 6] + wrap_angle(back[0, 6] - box[0, 6])
    np.testing.assert_allclose(back, box, atol=1e-9)


def test_unknown_velocity_stays_unknown_and_the_source_is_untouched() -> None:
    box = CAR.copy()
    box[0, 7:9] = np.nan
    before = box.copy()
    moved = transform_boxes(box, yaw_pose(1.0, [0.0, 0.0, 0.0]))
    assert np.isnan(moved[0, 7:9]).all()
    np.testing.assert_array_equal(box, before)


def test_a_tilt_changes_yaw_to_second_order() -> None:
    tilt_rad = 0.03
    tilted = pose([np.cos(tilt_rad / 2), np.sin(tilt_rad / 2), 0.0, 0.0], [0.0, 0.0, 0.0])
    box = CAR.copy()
    box[0, 6] = 0.7
    assert abs(transform_boxes(box, tilted)[0, 6] - 0.7) < tilt_rad**2


def test_no_boxes_stay_no_boxes() -> None:
    assert transform_boxes(np.zeros((0, 9)), np.eye(4)).shape == (0, 9)
    assert box_corners(np.zeros((0, 9))).shape == (0, 8, 3)


@pytest.mark.parametrize("mirror", [(1, 1), (-1, 1), (1, -1)])
@settings(max_examples=50, deadline=None)
@given(box=boxes, yaw_rad=yaws)
def test_augmented_boxes_hold_the_augmented_corners(mirror: tuple[int, int], box: np.ndarray, yaw_rad: float) -> None:
    scale = 1.1
    bev_aug = yaw_pose(yaw_rad, [0.0, 0.0, 0.0]) @ np.diag([mirror[0] * scale, mirror[1] * scale, scale, 1.0])
    augmented = augment_boxes(box, bev_aug)
    # A mirror swaps left and right, so the corners are compared as sets.
    got = _in_order(box_corners(augmented)[0])
    np.testing.assert_allclose(got, _in_order(transform_points(bev_aug, box_corners(box)[0])), atol=1e-6)
    np.testing.assert_allclose(augmented[0, 7:9], bev_aug[:2, :2] @ box[0, 7:9], atol=1e-9)


def test_points_in_boxes_by_hand() -> None:
    points = np.array([[10.0, -3.0, 0.5], [10.0, -1.1, 0.5], [11.1, -3.0, 0.5], [10.0, -3.0, 1.2], [11.0, -1.0, 1.0]])
    # Centre; near the front (2 m ahead); 1.1 m aside of a 2 m wide box; above; the corner itself.
    assert points_in_boxes(points, CAR)[:, 0].tolist() == [True, True, False, False, True]
    assert points_in_boxes(points, np.zeros((0, 9))).shape == (5, 0)


@settings(max_examples=50, deadline=None)
@given(boxes, st.lists(st.floats(-0.6, 0.6), min_size=3, max_size=3))
def test_points_in_boxes_by_construction(box: np.ndarray, fractions: list[float]) -> None:
    # A point at these fractions of the sides is inside exactly when all are under one half.
    offset = np.array(fractions) * box[0, 3:6]
    point = transform_points(yaw_pose(float(box[0, 6]), box[0, :3]), offset[None])
    if all(abs(abs(fraction) - 0.5) > 1e-6 for fraction in fractions):
        assert points_in_boxes(point, box)[0, 0] == all(abs(fraction) < 0.5 for fraction in fractions)


@pytest.mark.parametrize(
    ("angle_rad", "wrapped_rad"), [(0.0, 0.0), (3.5, 3.5 - 2 * np.pi), (-4.0, 2 * np.pi - 4.0), (np.pi, -np.pi)]
)
def test_wrap_angle(angle_rad: float, wrapped_rad: float) -> None:
    assert wrap_angle(np.array(angle_rad)) == pytest.approx(wrapped_rad)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_rows_in_boxes_are_points_in_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-6, 6, (300, 5)).astype(np.float32)
    boxes = np.column_stack([rng.uniform(-6, 6, (5, 3)), rng.uniform(0.5, 9, (5, 3)), rng.uniform(-3, 3, (5, 3))])
    boxes[0, :3] = points[0, :3]
    boxes[0, 3:7] = [0.0, 0.0, 0.0, 0.3]  # no size: only the point that is its centre
    inside = points_in_boxes(points, boxes)
    found = rows_in_boxes(points, boxes)
    assert [rows.tolist() for rows in found] == [np.flatnonzero(column).tolist() for column in inside.T]
    assert found[0].tolist() == [0]


def test_no_boxes_and_no_points_hold_nothing() -> None:
    assert rows_in_boxes(np.zeros((4, 5), np.float32), np.zeros((0, 9))) == []
    assert [rows.tolist() for rows in rows_in_boxes(np.zeros((0, 5), np.float32), CAR)] == [[]]


def flat(x: float, y: float, length: float, width: float, yaw: float) -> list[float]:
    return [x, y, 0.0, length, width, 1.0, yaw, 0.0, 0.0]


@pytest.mark.parametrize(
    ("box", "overlap"),
    [
        (flat(0, 0, 4, 2, 0), True),  # itself
        (flat(3.9, 0, 4, 2, 0), True),
        (flat(4, 0, 4, 2, 0), False),  # touching
        (flat(0, 1.9, 4, 2, 0), True),
        (flat(0, 2.1, 4, 2, 0), False),
        (flat(0.5, 0.2, 0.1, 0.1, 1), True),  # inside
        (flat(3.2, 2.2, 4, 2, -np.pi / 4), False),  # the axis-aligned hulls overlap, the boxes do not
        (flat(2.4, 1.4, 4, 2, -np.pi / 4), True),
        (flat(0, 0, 1, 20, 0), True),  # a cross: no corner of one lies in the other
        (flat(40, 0, 4, 2, 0), False),
    ],
)
def test_overlap_by_hand(box: list[float], overlap: bool) -> None:
    boxes, one = np.array([box, flat(100, 0, 1, 1, 0)]), np.array([flat(0, 0, 4, 2, 0)])
    assert footprints_overlap(one, boxes).tolist() == [[overlap, False]]
    assert footprints_overlap(boxes, one).tolist() == [[overlap], [False]]


@settings(max_examples=100, deadline=None)
@given(boxes, boxes, st.floats(0, 6.3), st.floats(0, 1.2))
def test_overlap_is_opencvs(first: np.ndarray, second: np.ndarray, angle: float, nearness: float) -> None:
    # Centres at about the distance at which boxes begin to touch.
    reach = nearness * (np.hypot(*first[0, 3:5]) + np.hypot(*second[0, 3:5])) / 2
    second[0, :2] = first[0, :2] + reach * np.array([np.cos(angle), np.sin(angle)])
    first[0, :2], second[0, :2] = (0.0, 0.0), second[0, :2] - first[0, :2]
    rectangles = [(tuple(box[:2]), tuple(box[3:5]), float(np.degrees(box[6]))) for box in (first[0], second[0])]
    kind, region = cv2.rotatedRectangleIntersection(*rectangles)
    area = 0.0 if region is None or kind == cv2.INTERSECT_NONE else cv2.contourArea(cv2.convexHull(region))
    if area == 0.0 or area > 1e-3:  # single precision in OpenCV
        shrunk = [box * ([1, 1, 1, 0.999, 0.999, 1, 1, 1, 1] if area == 0 else np.ones(9)) for box in (first, second)]
        assert footprints_overlap(*shrunk)[0, 0] == (area > 0)


def test_overlaps_of_boxes_with_themselves() -> None:
    several = np.array([flat(0, 0, 4, 2, 0.3), flat(1, 1, 4, 2, 2), flat(9, 9, 1, 1, 0)])
    assert footprints_overlap(several, several).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]
    assert footprints_overlap(several, np.zeros((0, 9))).shape == (3, 0)
    assert footprints_overlap(np.zeros((0, 9)), several).shape == (0, 3)


def _in_order(corners: np.ndarray) -> np.ndarray:
    return corners[np.lexsort(corners.round(4).T)]
