"""Rigid transforms and projection.

Convention: a matrix is named `src2dst`, is 4x4 float64 and acts on column vectors, `p_dst = src2dst @ p_src`.
Frames: `lidar`, `ego` (vehicle body), `cam` (x right, y down, z forward), `img` (pixels), `global`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def invert(src2dst: Array) -> Array:
    """Inverse of one or many 4x4 matrices, [..., 4, 4]; a singular one raises `numpy.linalg.LinAlgError`."""
    return np.linalg.inv(np.asarray(src2dst, dtype=np.float64))


def quaternion_to_matrix(wxyz: Array | tuple[float, ...] | list[float]) -> Array:
    """Rotation matrix [3, 3] of a quaternion (w, x, y, z); it is normalised first.

    Raises:
        ValueError: the quaternion has no length.
    """
    quaternion = np.asarray(wxyz, dtype=np.float64)
    norm = float(np.linalg.norm(quaternion))
    if quaternion.shape != (4,) or not norm > 0:
        raise ValueError(f"a rotation needs a non-zero quaternion (w, x, y, z), got {quaternion.tolist()}")
    return _unit_quaternions_to_matrices(quaternion / norm)


def quaternions_to_matrices(wxyz: Array) -> Array:
    """Rotation matrices [N, 3, 3] of quaternions [N, 4] (w, x, y, z); NaN where one has no length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = wxyz / np.linalg.norm(wxyz, axis=1, keepdims=True)
    return _unit_quaternions_to_matrices(unit)


def _unit_quaternions_to_matrices(wxyz: Array) -> Array:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] of length one."""
    w, x, y, z = np.moveaxis(wxyz, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(rotation: Array) -> Array:
    """Quaternion (w, x, y, z) with w >= 0 of a rotation matrix [3, 3].

    Source: eigenvector method (Bar-Itzhack 2000), stable for every rotation.
    """
    m = np.asarray(rotation, dtype=np.float64)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = m
    k = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    _, vectors = np.linalg.eigh(k / 3.0, UPLO="L")
    x, y, z, w = vectors[:, -1]
    quaternion = np.array([w, x, y, z])
    return quaternion if w >= 0 else -quaternion


def pose(rotation_wxyz: Array | tuple[float, ...] | list[float], translation: Array | list[float]) -> Array:
    """4x4 matrix of a rotation (quaternion w, x, y, z) followed by a translation in metres."""
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix(rotation_wxyz)
    matrix[:3, 3] = np.asarray(translation, dtype=np.float64)
    return matrix


def poses(rotations_wxyz: Array, translations: Array) -> Array:
    """4x4 matrices [N, 4, 4] of rotations [N, 4] followed by translations [N, 3]; NaN where one is no rotation."""
    matrices = np.zeros((len(rotations_wxyz), 4, 4))
    matrices[:, :3, :3] = quaternions_to_matrices(rotations_wxyz)
    matrices[:, :3, 3] = translations
    matrices[:, 3, 3] = 1.0
    return matrices


def yaw_pose(yaw_rad: float, translation: Array | list[float]) -> Array:
    """4x4 matrix of a rotation about +z followed by a translation in metres."""
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    matrix = np.eye(4)
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    matrix[:3, 3] = np.asarray(translation, dtype=np.float64)
    return matrix


def transform_points(src2dst: Array, points: Array) -> Array:
    """Move points [N, 3] by a 4x4 matrix; returns [N, 3]."""
    moved: Array = points @ src2dst[:3, :3].T + src2dst[:3, 3]
    return moved


def project(points_lidar: Array, lidar2img: Array) -> tuple[Array, Array]:
    """Project points [N, 3] into an image.

    Returns:
        Pixels [N, 2] (u right, v down) and depth [N] in metres along the optical axis. Pixels of points with
        depth <= 0 are meaningless; callers test depth first.
    """
    homogeneous = transform_points(lidar2img, points_lidar)
    depth_m = homogeneous[:, 2]
    safe = np.where(np.abs(depth_m) < 1e-6, 1e-6, depth_m)
    return homogeneous[:, :2] / safe[:, None], depth_m
