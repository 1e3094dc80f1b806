"""The augmentation of one frame: a BEV matrix and a view of each camera, drawn once and shared by every network.

Source: the transforms of mit-han-lab/bevfusion (GlobalRotScaleTrans, RandomFlip3D, ImageAug3D) as matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, ImageAugmentationConfig
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import view2network
from bevkd_deploy.geometry.frames import invert, transform_points


@dataclass(frozen=True, eq=False)
class FrameAug:
    """What happens to one frame.

    Attributes:
        bev_aug: 4x4 from the LiDAR frame to the augmented one; None where the BEV map is the deployed one.
        view_aug: per camera, 4x4 affine in view units (see `view2network`), times depth; None where the images are the
            deployed ones.
    """

    bev_aug: NDArray[np.float64] | None = None
    view_aug: Mapping[str, NDArray[np.float64]] | None = None

    def img_aug(self, spec: GraphSpec) -> dict[str, NDArray[np.float64]] | None:
        """Per camera, 4x4 from a network's pixels (times depth) to its augmented pixels."""
        if self.view_aug is None:
            return None
        to_network = view2network(spec)
        return self.warps(dict.fromkeys(self.view_aug, to_network))

    def warps(self, to_network: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]] | None:
        """The same for a network that fits each camera's image in its own way.

        Args:
            to_network: per camera, 4x4 from view units to the network's pixels, times depth.
        """
        if self.view_aug is None:
            return None
        views = {camera: view for camera, view in self.view_aug.items() if camera in to_network}
        return {camera: to_network[camera] @ view @ invert(to_network[camera]) for camera, view in views.items()}


def draw_frame_aug(
    config: AugmentationConfig,
    calibration: Calibration,
    cameras: Sequence[str],
    crop_aspect: float,
    seed: Sequence[int],
) -> FrameAug:
    """The augmentation of one frame.

    Args:
        config: what may happen.
        calibration: of the frame; gives the raw image sizes.
        cameras: all cameras of the networks; each has its own draw whether or not the frame lacks another.
        crop_aspect: height / width of the network's image; views turn about its middle.
        seed: of this draw. BEV and views have streams of their own, so switching one on leaves the other as it was.
    """
    bev_aug = None if config.bev_is_off else draw_bev_aug(config, np.random.default_rng(seed))
    if config.image is None or config.views_are_off:
        return FrameAug(bev_aug)
    sizes = dict(zip(calibration.cameras, calibration.image_sizes_px, strict=True))
    views: dict[str, NDArray[np.float64]] = {}
    for number, camera in enumerate(cameras):
        if camera in sizes:
            height, width = sizes[camera]
            rng = np.random.default_rng([*seed, 1, number])
            views[camera] = draw_view_aug(config.image, height / width, crop_aspect, rng)
    return FrameAug(bev_aug, views)


def draw_bev_aug(config: AugmentationConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """4x4 from the LiDAR frame to the augmented one: flips, rotation about z, uniform scale, then a shift in metres."""
    angle = rng.uniform(-config.rotation_rad, config.rotation_rad)
    scale = rng.uniform(*config.scale)
    flip_x = -1.0 if config.flip_x and rng.random() < 0.5 else 1.0
    flip_y = -1.0 if config.flip_y and rng.random() < 0.5 else 1.0
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([flip_x, flip_y])
    matrix[:3, :3] *= scale
    matrix[:3, 3] = rng.normal(0.0, config.translation_m)
    return matrix


def draw_view_aug(
    config: ImageAugmentationConfig, raw_aspect: float, crop_aspect: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """4x4 affine in view units: zoom, crop, mirror, then rotation about the middle of the crop.

    Args:
        config: ranges of the draw.
        raw_aspect: height / width of the raw image.
        crop_aspect: height / width of the network's image.
        rng: always gives five numbers, whatever the ranges.
    """
    scale = rng.uniform(*config.scale)
    left_over = rng.random()
    bottom = rng.uniform(*config.bottom_crop)
    mirrored = rng.random() < 0.5 and config.flip
    angle = rng.uniform(-config.rotation_rad, config.rotation_rad)
    # The zoomed image covers [0, scale] x [-scale * raw_aspect, 0]; the crop becomes [0, 1] x [-crop_aspect, 0]. An
    # image narrower than the crop lies anywhere within it.
    view = _affine(scale * np.eye(2), [-left_over * (scale - 1), bottom * scale * raw_aspect])
    if mirrored:
        view = _affine(np.diag([-1.0, 1.0]), [1.0, 0.0]) @ view
    middle = np.array([0.5, -crop_aspect / 2])
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return _affine(turn, middle - turn @ middle) @ view


def augment_points(points: NDArray[np.float32], bev_aug: NDArray[np.float64]) -> NDArray[np.float32]:
    """Move the coordinates of points [N, 5]; intensity and time lag stay."""
    moved = points.copy()
    moved[:, :3] = transform_points(bev_aug, points[:, :3].astype(np.float64))
    return moved


def _affine(linear: NDArray[np.float64], offset: NDArray[np.float64] | list[float]) -> NDArray[np.float64]:
    """4x4 that acts on pixels times depth: the offset stands in the depth's column."""
    matrix = np.eye(4)
    matrix[:2, :2] = linear
    matrix[:2, 2] = offset
    return matrix
