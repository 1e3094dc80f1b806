"""Camera-to-BEV tables: which image feature and which depth bin each BEV cell and height reads.

The view transform is a gather: a voxel centre is projected into the cameras and reads one feature and one depth
bin. Where cameras overlap, the one that sees the voxel nearest to its middle column wins; ties go to graph order.
The tables depend on calibration (and in training on the frame's augmentation) only; they are graph inputs.

Convention: pixel i covers [i, i + 1); a feature cell of stride s covers s pixels; bin d covers
[min + d * step, min + (d + 1) * step) metres along the optical axis.
Source of the idea: index-gather view transforms (Fast-BEV arXiv 2301.12511, FastBEV++).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.frames import invert
from bevkd_deploy.geometry.grid import BevGrid

#: Nearer than this to a camera's plane a projection is numerically meaningless.
MIN_DEPTH_M = 0.1


@dataclass(frozen=True)
class ImageFit:
    """How a raw image becomes the network's: scale to `scaled_hw_px`, then crop.

    Attributes:
        scaled_hw_px: (height, width) after the resize.
        top_px: first kept row of the resized image.
        left_px: first kept column.
    """

    scaled_hw_px: tuple[int, int]
    top_px: int
    left_px: int

    def matrix(self, raw_hw_px: tuple[int, int]) -> NDArray[np.float64]:
        """4x4 from raw pixels (times depth) to network pixels (times depth)."""
        matrix = np.eye(4)
        matrix[0, 0] = self.scaled_hw_px[1] / raw_hw_px[1]
        matrix[1, 1] = self.scaled_hw_px[0] / raw_hw_px[0]
        matrix[0, 2], matrix[1, 2] = -self.left_px, -self.top_px
        return matrix

    @property
    def bounds_px(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the whole raw image in network pixels; the crop cuts some of it off."""
        height, width = self.scaled_hw_px
        return -self.left_px, -self.top_px, width - self.left_px, height - self.top_px


def fit_image(raw_hw_px: tuple[int, int], spec: GraphSpec) -> ImageFit:
    """Keep the whole width, drop rows from the top (sky), as BEVFusion's test-time crop does.

    Raises:
        DataError: the raw image is too flat for the network's aspect ratio.
    """
    height, width = spec.image_height_px, spec.image_width_px
    scaled_height = round(raw_hw_px[0] * width / raw_hw_px[1])
    if scaled_height < height:
        raise DataError(
            f"a {raw_hw_px[1]}x{raw_hw_px[0]} image scaled to width {width} has {scaled_height} rows, the network "
            f"needs {height}: choose a smaller image_size_px height"
        )
    return ImageFit((scaled_height, width), scaled_height - height, 0)


def view2network(spec: GraphSpec) -> NDArray[np.float64]:
    """4x4 from view units to network pixels, both times depth.

    View units do not depend on a network's input size: 1 is the width of the network's image, the origin is its bottom
    left corner (which the fit keeps in place for every height), x points right and y down.
    """
    matrix = np.diag([spec.image_width_px, spec.image_width_px, 1.0, 1.0])
    matrix[1, 2] = spec.image_height_px
    return matrix


def build_luts(
    spec: GraphSpec,
    calibration: Calibration,
    bev_aug: NDArray[np.float64] | None = None,
    img_aug: Mapping[str, NDArray[np.float64]] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Build both tables.

    Args:
        spec: graph geometry.
        calibration: cameras in the graph's order; one that is left out is missing in this frame, and no cell reads it.
        bev_aug: 4x4 from the LiDAR frame to the augmented one that the BEV map lives in; None at deployment.
        img_aug: per camera, 4x4 affine from network pixels (times depth) to those of the augmented image; None at
            deployment. A cell reads no pixel beyond the edge of the raw image, where an augmented image is black.

    Returns:
        `lut_pixel` and `lut_depth`, int32 [Z, Y * X], as `GraphSpec.inputs` describes them.

    Raises:
        DataError: the calibration has a camera that the graph does not take, or another order.
    """
    if calibration.cameras != tuple(name for name in spec.cameras if name in calibration.cameras):
        raise DataError(f"the graph takes {list(spec.cameras)}, the calibration has {list(calibration.cameras)}")
    augmented2lidar = np.eye(4) if bev_aug is None else invert(bev_aug)
    ground = BevGrid.bev(spec).cell_centers()
    heights_m = np.array(spec.heights_m)[:, None]
    voxels = len(heights_m) * len(ground)
    pixel = np.full(voxels, spec.pixel_dump_index, dtype=np.int32)
    depth = np.full(voxels, spec.depth_dump_index, dtype=np.int32)
    best_offset = np.full(voxels, np.inf)
    width = spec.feature_shape_hw[1]
    for name, lidar2img, raw_hw in zip(
        calibration.cameras, calibration.lidar2img(), calibration.image_sizes_px, strict=True
    ):
        camera = spec.cameras.index(name)
        fit = fit_image(raw_hw, spec)
        augmented2img = fit.matrix(raw_hw) @ lidar2img @ augmented2lidar
        if img_aug is None:
            seen, uv, bin_index = _visible(ground, heights_m, augmented2img, spec, _map_bounds_px(spec))
        else:
            seen, uv, bin_index = _visible(ground, heights_m, augmented2img, spec, fit.bounds_px)
            seen, uv, bin_index = _move_pixels(seen, uv, bin_index, img_aug[name], _map_bounds_px(spec))
        # Ties go to the camera that comes first, so a later one must be strictly nearer to its middle column.
        offset = np.abs(uv[:, 0] - spec.image_width_px / 2)
        nearer = offset < best_offset[seen]
        seen, uv, bin_index = seen[nearer], uv[nearer], bin_index[nearer]
        best_offset[seen] = offset[nearer]
        column, row = (uv // spec.feature_stride).astype(np.int32).T
        flat = (camera * spec.feature_shape_hw[0] + row) * width + column
        pixel[seen] = flat
        depth[seen] = flat * spec.depth_bins + bin_index
    shape = (len(heights_m), -1)
    return pixel.reshape(shape), depth.reshape(shape)


def _map_bounds_px(spec: GraphSpec) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the feature map; smaller than the image where the stride does not divide it."""
    height, width = (side * spec.feature_stride for side in spec.feature_shape_hw)
    return 0.0, 0.0, width, height


def _visible(
    ground: NDArray[np.float64],
    heights_m: NDArray[np.float64],
    augmented2img: NDArray[np.float64],
    spec: GraphSpec,
    bounds_px: tuple[float, float, float, float],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Voxels that one camera sees within bounds and depth bins: flat number [n], pixels [n, 2], depth bin [n].

    A projection is affine in height, so the ground cells are projected once and shifted per height; pixels are
    divided out for voxels at a usable depth only. Calibration changes with every keyframe where ego motion between
    the sensors is compensated, so this runs once a frame.
    """
    base = augmented2img[:3, :2] @ ground.T + augmented2img[:3, 3:]
    x, y, depth_m = ((base[axis] + heights_m * augmented2img[axis, 2]).ravel() for axis in range(3))
    # Half of the voxels lie behind the camera: they leave before anything is divided.
    ahead = np.flatnonzero((depth_m > MIN_DEPTH_M) & (depth_m < spec.depth_max_m))
    depth_m = depth_m[ahead]
    u, v = x[ahead] / depth_m, y[ahead] / depth_m
    bins = np.floor((depth_m - spec.depth_min_m) / ((spec.depth_max_m - spec.depth_min_m) / spec.depth_bins))
    inside = _inside(u, v, bounds_px) & (bins >= 0) & (bins < spec.depth_bins)
    return ahead[inside], np.stack([u[inside], v[inside]], axis=-1), bins[inside].astype(np.int32)


def _move_pixels(
    seen: NDArray[np.int64],
    uv: NDArray[np.float64],
    bin_index: NDArray[np.int32],
    img_aug: NDArray[np.float64],
    bounds_px: tuple[float, float, float, float],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Pixels in the augmented image, less what leaves it; depth bins stay: the optical axis does not turn."""
    moved = uv @ img_aug[:2, :2].T + img_aug[:2, 2]
    inside = _inside(moved[:, 0], moved[:, 1], bounds_px)
    return seen[inside], moved[inside], bin_index[inside]


def _inside(
    u: NDArray[np.float64], v: NDArray[np.float64], bounds_px: tuple[float, float, float, float]
) -> NDArray[np.bool_]:
    left, top, right, bottom = bounds_px
    return (u >= left) & (u < right) & (v >= top) & (v < bottom)
