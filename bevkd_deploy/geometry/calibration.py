"""Camera calibration of one frame, in raw pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError


@dataclass(frozen=True, eq=False)
class Calibration:
    """Where each camera sits and how it projects.

    Attributes:
        cameras: names, in the order of the other fields.
        cam2img: [N, 3, 3] float64 intrinsics, raw pixels.
        lidar2cam: [N, 4, 4] float64.
        image_sizes_px: (height, width) of each raw image.
    """

    cameras: tuple[str, ...]
    cam2img: NDArray[np.float64]
    lidar2cam: NDArray[np.float64]
    image_sizes_px: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        count = len(self.cameras)
        shapes = (self.cam2img.shape, self.lidar2cam.shape, len(self.image_sizes_px))
        if shapes != ((count, 3, 3), (count, 4, 4), count):
            raise DataError(
                f"calibration of {count} cameras needs cam2img [{count}, 3, 3], lidar2cam [{count}, 4, 4] and {count} "
                f"image sizes, got {shapes}"
            )
        sound = invertible(self.cam2img) & invertible(self.lidar2cam)
        for row in np.flatnonzero(~sound)[:1]:
            raise DataError(
                f"calibration of {self.cameras[row]} is not invertible: cam2img {self.cam2img[row].tolist()}, "
                f"lidar2cam {self.lidar2cam[row].tolist()}"
            )

    def select(self, cameras: Sequence[str]) -> Calibration:
        """The same calibration for some cameras, in the given order."""
        missing = [name for name in cameras if name not in self.cameras]
        if missing:
            raise DataError(f"calibration lacks cameras {missing}; it has {list(self.cameras)}")
        rows = [self.cameras.index(name) for name in cameras]
        sizes = tuple(self.image_sizes_px[row] for row in rows)
        return Calibration(tuple(cameras), self.cam2img[rows], self.lidar2cam[rows], sizes)

    def lidar2img(self) -> NDArray[np.float64]:
        """[N, 4, 4]: LiDAR frame to raw pixels (times depth)."""
        cam2img = np.tile(np.eye(4), (len(self.cameras), 1, 1))
        cam2img[:, :3, :3] = self.cam2img
        return cam2img @ self.lidar2cam

    def digest(self) -> str:
        """Hex hash of every number and name; the camera tables are rebuilt when it changes."""
        digest = hashlib.sha256(repr((self.cameras, self.image_sizes_px)).encode())
        digest.update(np.ascontiguousarray(self.cam2img).tobytes())
        digest.update(np.ascontiguousarray(self.lidar2cam).tobytes())
        return digest.hexdigest()


def invertible(matrices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the square matrices [..., n, n] are finite and have an inverse."""
    finite = np.asarray(np.isfinite(matrices).all(axis=(-2, -1)))
    determinant = np.linalg.det(np.where(finite[..., None, None], matrices, 0.0))
    return np.asarray(finite & (np.abs(determinant) >= 1e-9))
