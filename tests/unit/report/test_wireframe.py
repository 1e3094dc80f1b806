from __future__ import annotations

import numpy as np

from bevkd_deploy.geometry.boxes import BOX_EDGES, box_corners
from bevkd_deploy.geometry.frames import project
from bevkd_deploy.report import wireframe

BOXES = np.array([[1.0, 12.0, -0.5, 4.0, 2.0, 1.5, 0.7, 0, 0], [-3.0, 20.0, 0.2, 0.8, 0.6, 1.8, -2.0, 0, 0]])

#: Looks along lidar +y from the origin, focal length 100, centre (50, 40).
LIDAR2IMG = np.array([[100.0, 50, 0, 0], [0, 40, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def test_same_corners_and_edges_as_geometry() -> None:
    np.testing.assert_allclose(wireframe.corners(BOXES), box_corners(BOXES), atol=1e-12)
    assert {frozenset(edge) for edge in wireframe.EDGES.tolist()} == {frozenset(edge) for edge in BOX_EDGES}


def test_same_pixels_as_geometry_in_front_of_the_camera() -> None:
    lines = wireframe.segments(BOXES)
    pixels, visible = wireframe.project_segments(lines, LIDAR2IMG)
    expected, _ = project(lines.reshape(-1, 3), LIDAR2IMG)
    assert visible.all()
    np.testing.assert_allclose(pixels.reshape(-1, 2), expected, atol=1e-9)


def test_outline_and_heading_by_hand() -> None:
    box = np.array([[10.0, 5.0, 0, 4.0, 2.0, 1.0, np.pi / 2, 0, 0]])
    # Length along y, width along x; front left is at smaller x.
    np.testing.assert_allclose(wireframe.ground_outline(box)[0], [[9, 7], [11, 7], [11, 3], [9, 3], [9, 7]], atol=1e-12)
    np.testing.assert_allclose(wireframe.ground_heading(box, 0.5)[0], [[10, 5], [10, 7.5]], atol=1e-12)


def test_segments_end_in_the_heading_on_the_bottom_face() -> None:
    box = np.array([[0.0, 10.0, 0, 4.0, 2.0, 2.0, 0.0, 0, 0]])
    lines = wireframe.segments(box)
    assert lines.shape == (1, 13, 2, 3)
    np.testing.assert_allclose(lines[0, -1], [[0, 10, -1], [2, 10, -1]], atol=1e-12)


def test_cut_at_the_near_plane_by_hand() -> None:
    # From 5 m behind the camera to 5 m in front: the plane at 1 m is met at 6/10 of the way, x = 1.2.
    line = np.array([[[0.0, -5.0, 0.0], [2.0, 5.0, 0.0]]])
    pixels, visible = wireframe.project_segments(line, LIDAR2IMG, near_m=1.0)
    assert visible.tolist() == [True]
    np.testing.assert_allclose(pixels[0], [[50 + 100 * 1.2, 40], [50 + 100 * 0.4, 40]])
    swapped, _ = wireframe.project_segments(line[:, ::-1], LIDAR2IMG, near_m=1.0)
    np.testing.assert_allclose(swapped[0], pixels[0, ::-1])


def test_behind_the_camera_is_invisible() -> None:
    lines = np.array([[[0.0, -5.0, 0.0], [2.0, -1.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    pixels, visible = wireframe.project_segments(lines, LIDAR2IMG)
    assert visible.tolist() == [False, False]
    assert np.isfinite(pixels).all()


def test_no_boxes() -> None:
    none = np.empty((0, 9))
    pixels, visible = wireframe.project_segments(wireframe.segments(none), LIDAR2IMG)
    assert pixels.shape == (0, 13, 2, 2) and visible.shape == (0, 13)
    assert wireframe.ground_outline(none).shape == (0, 5, 2)
