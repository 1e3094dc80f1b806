"""BEV augmentation as one 4x4 matrix, drawn once per frame and shared by teacher and student."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.recipe import AugmentationConfig
from bevkd_deploy.geometry.frames import transform_points


def draw_bev_aug(config: AugmentationConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """4x4 from the LiDAR frame to the augmented one: flips, rotation about z, uniform scale."""
    angle = rng.uniform(-config.rotation_rad, config.rotation_rad)
    scale = rng.uniform(*config.scale)
    flip_x = -1.0 if config.flip_x and rng.random() < 0.5 else 1.0
    flip_y = -1.0 if config.flip_y and rng.random() < 0.5 else 1.0
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([flip_x, flip_y])
    matrix[:3, :3] *= scale
    return matrix


def augment_points(points: NDArray[np.float32], bev_aug: NDArray[np.float64]) -> NDArray[np.float32]:
    """Move the coordinates of points [N, 5]; intensity and time lag stay."""
    moved = points.copy()
    moved[:, :3] = transform_points(bev_aug, points[:, :3].astype(np.float64))
    return moved
