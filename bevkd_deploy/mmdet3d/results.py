"""What an mmdet3d pipeline hands from transform to transform, read as sensor arrays and matrices in our conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.geometry.calibration import Calibration

ChannelOrder = Literal["bgr", "rgb"]

#: A time lag beyond this (seconds) is a ring number: ten sweeps span half a second.
_LONGEST_LAG_S = 5.0


@dataclass(frozen=True, eq=False)
class SensorResults:
    """One frame.

    Attributes:
        images: per camera RGB uint8 [H, W, 3]: raw, or with `img_aug` as mmdet3d's transforms left them.
        img_aug: per camera 4x4 from raw pixels (times depth) to those of `images`; None where `images` are raw.
        points: float32 [P, 5] x, y, z, intensity, time lag; in the augmented LiDAR frame.
        calibration: raw pixels, LiDAR frame before augmentation.
        bev_aug: 4x4 that mmdet3d's transforms applied to points and boxes; None: none.
    """

    images: dict[str, NDArray[np.uint8]]
    img_aug: dict[str, NDArray[np.float64]] | None
    points: NDArray[np.float32]
    calibration: Calibration
    bev_aug: NDArray[np.float64] | None


def read_results(results: Mapping[str, Any], image_channels: ChannelOrder) -> SensorResults:
    """The sensors of one frame.

    Args:
        results: after the loading transforms, and perhaps augmentation of mmdet3d or its projects/BEVFusion.
        image_channels: order in which the loader left the images.

    Raises:
        UsageError: the pipeline lacks a transform, or has one whose effect cannot be followed.
        DataError: an array is not what the pipeline says it is.
    """
    _require(results, "points", "LoadPointsFromFile and LoadPointsFromMultiSweeps")
    _require(results, "img", "LoadMultiViewImageFromFiles (and modality=dict(use_camera=True) in the dataset)")
    if results.get("flip"):
        raise UsageError(
            "RandomFlip3D has flipped the images: with several cameras mmdet3d does so whatever sync_2d says, and the "
            "calibration does not follow. Remove it and set BevkdInputs(augment=True), or use BEVFusionRandomFlip3D"
        )
    cameras = list(results["images"])
    images = dict(zip(cameras, (_image(image, image_channels) for image in results["img"]), strict=True))
    raw_hw_px = (int(results["ori_shape"][0]), int(results["ori_shape"][1]))
    img_aug = None
    if "img_aug_matrix" in results:
        matrices = results["img_aug_matrix"]
        img_aug = {camera: _times_depth(matrix) for camera, matrix in zip(cameras, matrices, strict=True)}
    else:
        _require_raw(images, raw_hw_px)
    calibration = Calibration(
        tuple(cameras),
        np.stack([np.asarray(results["images"][camera]["cam2img"], np.float64)[:3, :3] for camera in cameras]),
        np.stack([np.asarray(results["images"][camera]["lidar2cam"], np.float64) for camera in cameras]),
        (raw_hw_px,) * len(cameras),
    )
    return SensorResults(images, img_aug, _points(results["points"]), calibration, bev_aug_of(results))


def bev_aug_of(results: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """4x4 from the LiDAR frame to the augmented one; None where nothing was augmented.

    mmdet3d's transforms note their steps in `transformation_3d_flow`, those of projects/BEVFusion keep the matrix in
    `lidar_aug_matrix` (and note rotation, translation and scaling as well).

    Raises:
        UsageError: the steps cannot be followed: both kinds are mixed, or one transform ran twice.
    """
    flow = tuple(results.get("transformation_3d_flow", ()))
    if "lidar_aug_matrix" in results:
        if flow not in ((), ("R", "T", "S")):
            raise UsageError(
                f"the pipeline mixes mmdet3d's own augmentation (steps {list(flow)}) with that of projects/BEVFusion, "
                "whose lidar_aug_matrix does not hold the other's steps; use transforms of one kind"
            )
        return np.asarray(results["lidar_aug_matrix"], dtype=np.float64)
    if not flow:
        return None
    if len(set(flow)) != len(flow):
        raise UsageError(f"a transform has augmented the frame twice (steps {list(flow)}); mmdet3d keeps the last only")
    matrix = np.eye(4)
    for step in flow:
        matrix = _step(step, results) @ matrix
    return matrix


def _step(name: str, results: Mapping[str, Any]) -> NDArray[np.float64]:
    """One step of `transformation_3d_flow`."""
    matrix = np.eye(4)
    if name == "R":  # kept for rows of points: p @ pcd_rotation
        matrix[:3, :3] = np.asarray(results["pcd_rotation"], dtype=np.float64).T
    elif name == "S":
        matrix[:3, :3] *= float(results["pcd_scale_factor"])
    elif name == "T":
        matrix[:3, 3] = np.asarray(results["pcd_trans"], dtype=np.float64)
    elif name == "HF":
        matrix[1, 1] = -1.0
    elif name == "VF":
        matrix[0, 0] = -1.0
    else:
        raise UsageError(f"an augmentation step {name!r} of the pipeline is not known; known are R, S, T, HF, VF")
    return matrix


def _require(results: Mapping[str, Any], key: str, transforms: str) -> None:
    if key not in results:
        raise UsageError(f"BevkdInputs finds no '{key}' in the pipeline's results; put {transforms} before it")


def _image(image: Any, channels: ChannelOrder) -> NDArray[np.uint8]:
    """RGB uint8 of what a loader with or without to_float32 gives."""
    array = np.asarray(image)
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if low < 0.0 or high > 255.0 or high <= 1.0:
            raise DataError(
                f"images must hold 0..255, got {low:g}..{high:g}; the student normalises them itself: remove "
                "ImageNormalize or Normalize from the pipeline"
            )
        array = np.rint(array).astype(np.uint8)
    return np.ascontiguousarray(array[..., ::-1] if channels == "bgr" else array)


def _require_raw(images: Mapping[str, NDArray[np.uint8]], raw_hw_px: tuple[int, int]) -> None:
    for camera, image in images.items():
        if image.shape[:2] != raw_hw_px:
            raise UsageError(
                f"{camera}: a transform made the image {image.shape[:2]} (height, width) of {raw_hw_px} and left no "
                "img_aug_matrix, so the calibration cannot follow; remove it: BevkdInputs resizes"
            )


def _times_depth(matrix: Any) -> NDArray[np.float64]:
    """An affine of plain pixels (the shift in the last column) as one of pixels times depth (in the depth's column)."""
    given = np.asarray(matrix, dtype=np.float64)
    moved = np.eye(4)
    moved[:2, :2], moved[:2, 2] = given[:2, :2], given[:2, 3]
    return moved


def _points(points: Any) -> NDArray[np.float32]:
    """[P, 5] with the time lag in the last column."""
    array: NDArray[np.float32] = points.tensor.numpy().astype(np.float32, copy=False)
    if array.ndim != 2 or array.shape[1] != 5:
        raise UsageError(
            f"points must have 5 columns (x, y, z, intensity, time lag), got {list(array.shape)}; set load_dim=5 and "
            "use_dim=5 in LoadPointsFromFile and in LoadPointsFromMultiSweeps"
        )
    if len(array) and float(np.abs(array[:, 4]).max()) > _LONGEST_LAG_S:
        raise UsageError(
            f"the last column of the points reaches {float(np.abs(array[:, 4]).max()):g}, which is no time lag in "
            "seconds but nuScenes' ring number; put LoadPointsFromMultiSweeps after LoadPointsFromFile (sweeps_num=0 "
            "for the keyframe alone)"
        )
    return array
