"""A plausible random frame, for what needs a frame where there is no data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.runtime.preprocess import Feed, Preprocessor


def synthetic_feed(spec: GraphSpec, seed: int) -> Feed:
    """Graph inputs of a student without data."""
    images, points, calibration = synthetic_sensors(spec, seed)
    return Preprocessor(spec)([images[camera] for camera in spec.cameras], points, calibration)


def synthetic_sensors(
    spec: GraphSpec, seed: int
) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32], Calibration]:
    """Raw noise images by camera, points [P, 5] all around, and nuScenes-like cameras."""
    rng = np.random.default_rng(seed)
    x0, y0, z0, x1, y1, z1 = spec.range_m
    count = min(30_000, spec.max_pillars * 4)
    points = np.zeros((count, 5), dtype=np.float32)
    points[:, 0] = rng.uniform(x0, x1, count)
    points[:, 1] = rng.uniform(y0, y1, count)
    points[:, 2] = rng.uniform(max(z0, -2.0), min(z1, 1.0), count)
    points[:, 3] = rng.uniform(0, 255, count)
    height, width = 900, 1600
    images = {camera: rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for camera in spec.cameras}
    return images, points, _surround_cameras(spec, (height, width))


def _surround_cameras(spec: GraphSpec, size_hw_px: tuple[int, int]) -> Calibration:
    """Cameras looking evenly around, 60 degrees wide each."""
    height, width = size_hw_px
    focal_px = 1266.0
    cam2img = np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1.0]])
    lidar2cam = []
    for index in range(len(spec.cameras)):
        yaw = 2 * np.pi * index / len(spec.cameras)
        forward, left = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([-left, np.array([0.0, 0.0, -1.0]), forward])
        lidar2cam.append(matrix)
    count = len(spec.cameras)
    return Calibration(spec.cameras, np.stack([cam2img] * count), np.stack(lidar2cam), (size_hw_px,) * count)
