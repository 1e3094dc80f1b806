"""The inputs of a teacher that takes sensors as they are (contract `bevkd.sensors/1`), in training and evaluation.

A teacher must see what it was trained with, so the resize is that of its own pipeline (Pillow's bicubic filter for
BEVFusion), not the one that ships to the board.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import ImageFit
from bevkd_deploy.runtime.preprocess import Feed, ImageAug, fitted_images
from bevkd_deploy.runtime.stage_timer import StageTimer

#: A camera that a frame lacks looks from here, so that nothing it might show falls on the map.
_NOWHERE_M = 1e6


class SensorPreprocessor:
    """Turns one frame's sensor arrays into the inputs of a BEVFusion or mmdet3d network."""

    def __init__(self, spec: SensorSpec) -> None:
        self.spec = spec

    def images(self, images: Sequence[NDArray[np.uint8] | None], img_aug: ImageAug | None = None) -> NDArray[np.uint8]:
        """Resize and crop raw RGB images [H, W, 3] uint8, in camera order, to [N, h, w, 3] uint8.

        Args:
            images: None for a camera that is missing in this frame: its image is black.
            img_aug: per camera, 4x4 from network pixels (times depth) to augmented ones; training alone.

        Raises:
            DataError: another number of images, another dtype, or an image too small for the crop.
        """
        return fitted_images(
            images,
            self.spec.cameras,
            (self.spec.image_height_px, self.spec.image_width_px),
            fit=lambda raw_hw_px: fit_sensor_image(raw_hw_px, self.spec),
            resize=self._resize_and_crop,
            img_aug=img_aug,
        )

    def view2network(self, calibration: Calibration) -> dict[str, NDArray[np.float64]]:
        """Per camera, 4x4 from view units (see `geometry.camera_lut.view2network`) to network pixels, times depth."""
        found = {}
        for camera, raw_hw_px in zip(calibration.cameras, calibration.image_sizes_px, strict=True):
            if camera not in self.spec.cameras:
                continue
            fit = fit_sensor_image(raw_hw_px, self.spec)
            matrix = np.diag([float(fit.scaled_hw_px[1]), float(fit.scaled_hw_px[1]), 1.0, 1.0])
            matrix[:2, 2] = -fit.left_px, self.spec.image_height_px
            found[camera] = matrix
        return found

    def inputs(
        self,
        images: NDArray[np.uint8],
        points: NDArray[np.float32],
        calibration: Calibration,
        bev_aug: NDArray[np.float64] | None = None,
        img_aug: ImageAug | None = None,
        missing: Sequence[str] = (),
    ) -> Feed:
        """The inputs of one frame, without a batch axis.

        Args:
            images: [N, h, w, 3] uint8 from `images`.
            points: float32 [P, 5] in the augmented lidar frame.
            calibration: of the frame, raw pixels.
            bev_aug: 4x4 that was applied to the points; None: nothing was.
            img_aug: as given to `images`.
            missing: cameras that the frame lacks.
        """
        if self.spec.drop_outside:
            low, high = np.array(self.spec.range_m[:3], np.float32), np.array(self.spec.range_m[3:], np.float32)
            points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(axis=1)]
        feed: Feed = {
            "points": np.ascontiguousarray(points, dtype=np.float32),
            "point_count": np.array(len(points), dtype=np.int64),
        }
        if not self.spec.cameras:
            return feed
        there = calibration.select([camera for camera in self.spec.cameras if camera not in missing])
        count = len(self.spec.cameras)
        matrices = {name: np.tile(np.eye(4), (count, 1, 1)) for name in ("cam2img", "img_aug")}
        matrices["cam2lidar"], matrices["lidar2img"] = _nowhere(count)
        rows = [self.spec.cameras.index(camera) for camera in there.cameras]
        matrices["cam2img"][rows, :3, :3] = there.cam2img
        matrices["lidar2img"][rows] = there.lidar2img()
        matrices["cam2lidar"][rows] = np.linalg.inv(there.lidar2cam)
        for row, camera, raw_hw_px in zip(rows, there.cameras, there.image_sizes_px, strict=True):
            raw2network = fit_sensor_image(raw_hw_px, self.spec).matrix(raw_hw_px)
            matrices["img_aug"][row] = _shift_last(raw2network if img_aug is None else img_aug[camera] @ raw2network)
        matrices["lidar_aug"] = np.eye(4) if bev_aug is None else bev_aug
        feed["images"] = images
        feed.update({name: matrix.astype(np.float32) for name, matrix in matrices.items()})
        return feed

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8] | None],
        points: NDArray[np.float32],
        calibration: Calibration,
        *,
        timer: StageTimer | None = None,
    ) -> Feed:
        """All inputs of one frame, as at evaluation; arguments and errors of `runtime.preprocess.Preprocessor`."""
        timer = timer or StageTimer()
        prepared = self.images(images)
        timer.lap("resize")
        missing = [name for name, image in zip(self.spec.cameras, images, strict=True) if image is None]
        feed = self.inputs(prepared, points, calibration, missing=missing)
        timer.lap("matrices")
        return feed

    def _resize_and_crop(self, image: NDArray[np.uint8], fit: ImageFit) -> NDArray[np.uint8]:
        size = (fit.scaled_hw_px[1], fit.scaled_hw_px[0])
        if self.spec.image_resize == "pillow_bicubic":
            resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        else:
            resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        height, width = self.spec.image_height_px, self.spec.image_width_px
        cropped: NDArray[np.uint8] = resized[fit.top_px : fit.top_px + height, fit.left_px : fit.left_px + width]
        return cropped


def fit_sensor_image(raw_hw_px: tuple[int, int], spec: SensorSpec) -> ImageFit:
    """Scale, then keep the bottom rows and the middle columns, as BEVFusion's test pipeline does.

    Raises:
        DataError: the scaled image is smaller than the crop.
    """
    scale = spec.image_scale or spec.image_width_px / raw_hw_px[1]
    height, width = int(raw_hw_px[0] * scale + 1e-6), int(raw_hw_px[1] * scale + 1e-6)
    if height < spec.image_height_px or width < spec.image_width_px:
        raise DataError(
            f"a {raw_hw_px[1]}x{raw_hw_px[0]} image scaled by {scale:g} is {width}x{height}, smaller than the crop of "
            f"{spec.image_width_px}x{spec.image_height_px} that the teacher takes: give teacher.geometry.image_scale "
            "for these cameras"
        )
    return ImageFit((height, width), height - spec.image_height_px, (width - spec.image_width_px) // 2)


def _shift_last(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """An affine of pixels times depth (the shift in the depth's column) as one of plain pixels (in the last column)."""
    moved = np.eye(4)
    moved[:2, :2], moved[:2, 3] = matrix[:2, :2], matrix[:2, 2]
    return moved


def _nowhere(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """cam2lidar and lidar2img of cameras far away, in whose image every point has one pixel far outside."""
    cam2lidar = np.tile(np.eye(4), (count, 1, 1))
    cam2lidar[:, :3, 3] = _NOWHERE_M
    lidar2img = np.zeros((count, 4, 4))
    lidar2img[:, :, 3] = -_NOWHERE_M, -_NOWHERE_M, 1.0, 1.0
    return cam2lidar, lidar2img
