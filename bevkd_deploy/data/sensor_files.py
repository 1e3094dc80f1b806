"""Reading point clouds and images, each error with its path, what was expected and what was found."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError

#: float32 columns of a nuScenes sweep: x, y, z, intensity, ring.
POINT_COLUMNS = 5


def load_points(path: Path) -> NDArray[np.float32]:
    """Read a nuScenes .pcd.bin as [N, 5] float32: x, y, z (metres, lidar frame), intensity 0..255, time lag 0 s.

    Raises:
        DataError: the file is missing, empty, truncated or holds non-finite values.
    """
    raw = _read_bytes(path, "point cloud")
    row_bytes = POINT_COLUMNS * 4
    if not raw or len(raw) % row_bytes:
        raise DataError(
            f"point cloud {path} is empty or truncated: {len(raw)} bytes, expected a positive multiple of {row_bytes} "
            f"({POINT_COLUMNS} float32 a point); copy the file again"
        )
    points = np.frombuffer(raw, dtype=np.float32).reshape(-1, POINT_COLUMNS).copy()
    finite = np.isfinite(points[:, :4]).all(axis=1)
    if not finite.all():
        raise DataError(f"point cloud {path}: {int((~finite).sum())} of {len(points)} points hold NaN or infinity")
    points[:, 4] = 0.0  # the ring number gives way to the time lag: a single sweep has none
    return points


def load_image(path: Path, expected_hw_px: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a JPEG or PNG as RGB uint8 [H, W, 3].

    Raises:
        DataError: the file is missing, truncated, no image, or not of the expected (height, width).
    """
    raw = _read_bytes(path, "image")
    # OpenCV fills the lost part of a truncated JPEG with grey and returns it, so the end marker is checked here.
    if raw[:2] == b"\xff\xd8" and b"\xff\xd9" not in raw[-64:]:
        raise DataError(f"image {path} is truncated: {len(raw)} bytes without a JPEG end marker; copy the file again")
    decoded = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_COLOR) if raw else None
    if decoded is None:
        raise DataError(f"image {path} cannot be decoded ({len(raw)} bytes); expected a JPEG or PNG")
    if expected_hw_px is not None and decoded.shape[:2] != tuple(expected_hw_px):
        raise DataError(f"image {path} is {decoded.shape[:2]} (height, width), its calibration says {expected_hw_px}")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}") from error
