"""The one preprocessing: training, evaluation, calibration and deployment all call it.

Images are resized (bilinear, OpenCV) and cropped, points become pillars, a calibration becomes camera tables. Training
may add an augmentation: a warp instead of the resize, and tables that follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import ImageFit, build_luts, fit_image
from bevkd_deploy.geometry.pillars import Pillars, voxelize
from bevkd_deploy.runtime.stage_timer import StageTimer

Feed = dict[str, NDArray[Any]]

#: Per camera, 4x4 from network pixels (times depth) to augmented ones.
ImageAug = Mapping[str, NDArray[np.float64]]


class Preprocessor:
    """Turns one frame's sensor arrays into the six inputs of a graph."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self._last_feed: Feed = {}
        self._tables: dict[str, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}

    def images(self, images: Sequence[NDArray[np.uint8] | None], img_aug: ImageAug | None = None) -> NDArray[np.uint8]:
        """Resize and crop raw RGB images [H, W, 3] uint8, in camera order, to [N, h, w, 3] uint8.

        None stands for a camera that is missing in this frame: its image is black. With `img_aug` (training alone) each
        image is warped once, from its raw pixels, and black where it shows nothing.
        """
        height, width = self.spec.image_height_px, self.spec.image_width_px
        return fitted_images(
            images,
            self.spec.cameras,
            (height, width),
            fit=lambda raw_hw_px: fit_image(raw_hw_px, self.spec),
            resize=lambda image, fit: _resize_and_crop(image, fit, height, width),
            img_aug=img_aug,
        )

    def pillars(self, points: NDArray[np.float32]) -> Pillars:
        """Points [P, 5] float32 (x, y, z, intensity, time lag; lidar frame) as padded pillars."""
        return voxelize(points, self.spec)

    def tables(
        self,
        calibration: Calibration,
        bev_aug: NDArray[np.float64] | None = None,
        img_aug: ImageAug | None = None,
        *,
        missing: Sequence[str] = (),
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Camera tables of a calibration; kept until another calibration comes, never across augmentations.

        No cell reads a camera of `missing`, which the calibration may lack.
        """
        chosen = calibration.select([name for name in self.spec.cameras if name not in missing])
        if bev_aug is not None or img_aug is not None:
            return build_luts(self.spec, chosen, bev_aug, img_aug)
        key = chosen.digest()
        if key not in self._tables:
            self._tables = {key: build_luts(self.spec, chosen)}
        return self._tables[key]

    def inputs(
        self,
        images: NDArray[np.uint8],
        points: NDArray[np.float32],
        calibration: Calibration,
        bev_aug: NDArray[np.float64] | None = None,
        img_aug: ImageAug | None = None,
        missing: Sequence[str] = (),
    ) -> Feed:
        """The six graph inputs of one frame whose images are prepared (see `images`, `pillars`, `tables`)."""
        lut_pixel, lut_depth = self.tables(calibration, bev_aug, img_aug, missing=missing)
        return _feed(images, self.pillars(points), lut_pixel, lut_depth)

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8] | None],
        points: NDArray[np.float32],
        calibration: Calibration,
        *,
        timer: StageTimer | None = None,
    ) -> Feed:
        """All six graph inputs of one frame.

        Args:
            images: raw RGB uint8 [H, W, 3], in the order of `spec.cameras`; None for one missing in this frame.
            points: float32 [P, 5], lidar frame; P is 0 where the LiDAR is missing in this frame.
            calibration: cameras of the frame, raw pixels; extra cameras are ignored.
            timer: told when `resize`, `pillars` and `tables` are done.

        Raises:
            DataError: a sensor array has the wrong shape, dtype or values.
        """
        timer = timer or StageTimer()
        prepared = self.images(images)
        self._check_sizes(images, calibration)
        timer.lap("resize")
        pillars = self.pillars(points)
        timer.lap("pillars")
        missing = [name for name, image in zip(self.spec.cameras, images, strict=True) if image is None]
        lut_pixel, lut_depth = self.tables(calibration, missing=missing)
        timer.lap("tables")
        # Kept until the next frame: freed at once, these megabytes go back to the system and are faulted in again,
        # which cost 3 ms of 7.5 for six 256x704 images and 20000 pillars.
        self._last_feed = _feed(prepared, pillars, lut_pixel, lut_depth)
        return self._last_feed

    def _check_sizes(self, images: Sequence[NDArray[np.uint8] | None], calibration: Calibration) -> None:
        """A calibration of other image sizes would project silently to the wrong pixels."""
        sizes = dict(zip(calibration.cameras, calibration.image_sizes_px, strict=True))
        for camera, image in zip(self.spec.cameras, images, strict=True):
            if image is not None and camera in sizes and image.shape[:2] != sizes[camera]:
                raise DataError(
                    f"{camera}: the calibration is for images of (height, width) {sizes[camera]}, got "
                    f"{image.shape[:2]}; give the raw image, or scale the intrinsics with it"
                )


def fitted_images(
    images: Sequence[NDArray[np.uint8] | None],
    cameras: Sequence[str],
    size_px: tuple[int, int],
    *,
    fit: Callable[[tuple[int, int]], ImageFit],
    resize: Callable[[NDArray[np.uint8], ImageFit], NDArray[np.uint8]],
    img_aug: ImageAug | None,
) -> NDArray[np.uint8]:
    """Raw images at a network's size, [N, h, w, 3] uint8; arguments and errors of `Preprocessor.images`.

    Args:
        images: raw, in camera order; None is black.
        cameras: their names.
        size_px: (height, width) of the network's images.
        fit: how a raw image of some (height, width) becomes one of the network's.
        resize: carries that out, without an augmentation.
        img_aug: with it each image is warped once instead.
    """
    if len(images) != len(cameras):
        raise DataError(f"expected {len(cameras)} images {list(cameras)}, got {len(images)}")
    out = np.empty((len(images), *size_px, 3), dtype=np.uint8)
    for row, (camera, image) in enumerate(zip(cameras, images, strict=True)):
        if image is None:
            out[row] = 0
            continue
        _check_image(camera, image)
        raw_hw_px = (image.shape[0], image.shape[1])
        if img_aug is None:
            out[row] = resize(image, fit(raw_hw_px))
        else:
            _warp(image, img_aug[camera] @ fit(raw_hw_px).matrix(raw_hw_px), out[row])
    return out


def _feed(
    images: NDArray[np.uint8], pillars: Pillars, lut_pixel: NDArray[np.int32], lut_depth: NDArray[np.int32]
) -> Feed:
    return {
        "images": images,
        "pillars": pillars.pillars,
        "pillar_count": pillars.pillar_count,
        "pillar_index": pillars.pillar_index,
        "lut_pixel": lut_pixel,
        "lut_depth": lut_depth,
    }


def _check_image(camera: str, image: NDArray[np.uint8]) -> None:
    """Refuse what is no uint8 [H, W, 3] array."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"{camera}: expected a uint8 [H, W, 3] RGB array, got {got}")


def _resize_and_crop(image: NDArray[np.uint8], fit: ImageFit, height: int, width: int) -> NDArray[np.uint8]:
    """The part of the resized image that the network sees, [height, width, 3].

    Rows above the crop are not resized: source and result are cut at a common multiple of the row ratio, where the
    cut falls on whole rows of both. Only for shrinking, where no kept row reads across the cut.
    """
    raw_height, scaled_height = image.shape[0], fit.scaled_hw_px[0]
    cut = 0
    if scaled_height < raw_height:
        block = scaled_height // gcd(raw_height, scaled_height)
        cut = fit.top_px - fit.top_px % block
        image = image[cut * raw_height // scaled_height :]
    if image.shape[:2] != (scaled_height - cut, fit.scaled_hw_px[1]):
        size = (fit.scaled_hw_px[1], scaled_height - cut)
        image = cast("NDArray[np.uint8]", cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    top = fit.top_px - cut
    return image[top : top + height, fit.left_px : fit.left_px + width]


def _warp(image: NDArray[np.uint8], raw2augmented: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Fill `out` [h, w, 3] with the augmented view, one bilinear interpolation of the raw pixels.

    One step, because warping an image that was resized before would blur it: training would see softer images than
    deployment does.
    """
    # Our pixel i covers [i, i + 1), OpenCV's pixel i is the point i: half a pixel on either side.
    linear = raw2augmented[:2, :2]
    offset = raw2augmented[:2, 2] + linear @ [0.5, 0.5] - 0.5
    size = (out.shape[1], out.shape[0])
    out[:] = cv2.warpAffine(image, np.column_stack([linear, offset]), size, flags=cv2.INTER_LINEAR)
