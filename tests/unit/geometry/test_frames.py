"""Rotations against SciPy and pyquaternion, transforms and projection against hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd_deploy.geometry.frames import (
    invert,
    matrix_to_quaternion,
    pose,
    project,
    quaternion_to_matrix,
    transform_points,
    yaw_pose,
)

scipy_transform = pytest.importorskip("scipy.spatial.transform")
quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.1)


@settings(max_examples=50, deadline=None)
@given(quaternions)
def test_matrix_is_scipys(wxyz: np.ndarray) -> None:
    expected = scipy_transform.Rotation.from_quat(wxyz[[1, 2, 3, 0]]).as_matrix()  # SciPy writes x, y, z, w
    np.testing.assert_allclose(quaternion_to_matrix(wxyz), expected, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(quaternions)
def test_quaternion_of_a_matrix_is_scipys(wxyz: np.ndarray) -> None:
    matrix = scipy_transform.Rotation.from_quat(wxyz[[1, 2, 3, 0]]).as_matrix()
    got = matrix_to_quaternion(matrix)
    assert got[0] >= 0
    # q and -q are one rotation, so they are compared without their sign.
    assert abs(np.dot(got, wxyz / np.linalg.norm(wxyz))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0.0, 0.8)])
def test_half_turns_survive_the_round_trip(axis: tuple[float, float, float]) -> None:
    half_turn = np.array([0.0, *axis])
    matrix = quaternion_to_matrix(half_turn)
    np.testing.assert_allclose(quaternion_to_matrix(matrix_to_quaternion(matrix)), matrix, atol=1e-9)


def test_pose_is_pyquaternions() -> None:
    quaternion = pytest.importorskip("pyquaternion").Quaternion(0.2, -0.5, 0.7, 0.4).normalised
    expected = quaternion.transformation_matrix
    expected[:3, 3] = [1.0, -2.0, 3.0]
    np.testing.assert_allclose(pose([0.2, -0.5, 0.7, 0.4], [1.0, -2.0, 3.0]), expected, atol=1e-12)


def test_yaw_turns_x_to_y() -> None:
    moved = transform_points(yaw_pose(np.pi / 2, [10.0, 0.0, 1.0]), np.array([[2.0, 0.0, 0.0]]))
    np.testing.assert_allclose(moved, [[10.0, 2.0, 1.0]], atol=1e-12)


def test_invert_undoes_many_at_once() -> None:
    many = np.stack([yaw_pose(0.3, [1.0, 2.0, 3.0]), pose([0.9, 0.1, -0.2, 0.4], [-5.0, 0.0, 2.0])])
    np.testing.assert_allclose(invert(many) @ many, np.tile(np.eye(4), (2, 1, 1)), atol=1e-12)


def test_invert_refuses_a_singular_matrix() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        invert(np.zeros((4, 4)))


def test_projection_by_hand() -> None:
    # A camera at the origin that looks along +x: cam x = -y, cam y = -z, cam z = x; focal 100 px, centre (50, 40).
    lidar2cam = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    cam2img = np.eye(4)
    cam2img[:3, :3] = [[100, 0, 50], [0, 100, 40], [0, 0, 1]]
    pixels, depth_m = project(np.array([[10.0, 2.0, 1.0], [-4.0, 0.0, 0.0]]), cam2img @ lidar2cam)
    np.testing.assert_allclose(pixels[0], [50 - 100 * 2 / 10, 40 - 100 * 1 / 10])
    np.testing.assert_allclose(depth_m, [10.0, -4.0])


def test_projection_of_the_cameras_own_place_is_finite() -> None:
    pixels, depth_m = project(np.zeros((1, 3)), np.eye(4))
    assert depth_m[0] == 0
    assert np.isfinite(pixels).all()


@pytest.mark.parametrize("wxyz", [[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
def test_no_rotation_without_a_quaternion(wxyz: list[float]) -> None:
    with pytest.raises(ValueError, match="non-zero quaternion"):
        quaternion_to_matrix(wxyz)
