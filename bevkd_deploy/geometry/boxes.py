"""3-D boxes: float64 [N, 9] = x, y, z, l, w, h, yaw, vx, vy.

LiDAR frame (or the frame a name says), geometric centre, metres, yaw in radians counter-clockwise from +x,
velocity in m/s, NaN where unknown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Edges of a box as pairs of `box_corners` indices: bottom, top, pillars.
BOX_EDGES: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7),
)  # fmt: skip


def wrap_angle(angle_rad: Array) -> Array:
    """Wrap angles into [-pi, pi)."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi


def box_corners(boxes: Array) -> Array:
    """Corners [N, 8, 3] of boxes: bottom front-left, front-right, back-right, back-left, then the same on top."""
    length, width, height, yaw = boxes[:, 3], boxes[:, 4], boxes[:, 5], boxes[:, 6]
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], dtype=np.float64)
    signs = np.concatenate([signs, signs])
    x = signs[:, 0] * length[:, None] / 2
    y = signs[:, 1] * width[:, None] / 2
    z = np.repeat(np.array([-0.5, 0.5]), 4) * height[:, None]
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1) + boxes[:, None, :3]


def transform_boxes(boxes: Array, src2dst: Array) -> Array:
    """Move boxes into another frame: centre, heading and velocity.

    The destination yaw is the heading of the box's +x axis projected on the destination's ground plane, so a
    tilt between the frames (a few degrees on a car) changes the yaw only to second order.
    """
    moved = np.array(boxes, dtype=np.float64, copy=True)
    rotation = src2dst[:3, :3]
    moved[:, :3] = boxes[:, :3] @ rotation.T + src2dst[:3, 3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=-1) @ rotation.T
    moved[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    velocity = np.concatenate([boxes[:, 7:9], np.zeros((len(boxes), 1))], axis=-1) @ rotation.T
    moved[:, 7:9] = velocity[:, :2]
    return moved


def augment_boxes(boxes: Array, bev_aug: Array) -> Array:
    """Apply a BEV augmentation (4x4: rotation about z, flips, uniform scale) to boxes, sizes and speeds included.

    A mirrored heading stays a heading, because it is moved as a direction, not as an angle.
    """
    moved = transform_boxes(boxes, bev_aug)
    scale = abs(float(np.linalg.det(bev_aug[:3, :3]))) ** (1 / 3)
    moved[:, 3:6] *= scale
    return moved


def points_in_boxes(points: Array, boxes: Array) -> NDArray[np.bool_]:
    """Which points [P, 3+] lie in which boxes; bool [P, N], faces included."""
    offset = points[:, None, :3] - boxes[None, :, :3]
    cosine, sine = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along = offset[..., 0] * cosine + offset[..., 1] * sine
    across = -offset[..., 0] * sine + offset[..., 1] * cosine
    inside = np.abs(along) <= boxes[:, 3] / 2
    inside &= np.abs(across) <= boxes[:, 4] / 2
    inside &= np.abs(offset[..., 2]) <= boxes[:, 5] / 2
    return np.asarray(inside)


def rows_in_boxes(points: NDArray[np.floating], boxes: Array) -> list[NDArray[np.int64]]:
    """For each box, the rows of the points [P, 3+] inside it, faces included, ascending.

    The same test as `points_in_boxes`; each box looks at the points near it alone, so whole sweeps are cheap.
    """
    x, y = points[:, 0], points[:, 1]
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2 + 1e-3  # float32 coordinates are rounded
    found = []
    for box, radius in zip(boxes, reach, strict=True):
        near = np.flatnonzero((np.abs(x - box[0]) <= radius) & (np.abs(y - box[1]) <= radius))
        inside = points_in_boxes(points[near, :3].astype(np.float64), box[None])[:, 0]
        found.append(near[inside].astype(np.int64))
    return found


def footprints_overlap(first: Array, second: Array) -> NDArray[np.bool_]:
    """Whether the footprints of boxes [N, 9] and [M, 9] overlap seen from above; bool [N, M], touching is no overlap.

    Source: separating axis theorem; two rectangles are apart exactly when they are along one of their four sides.
    """
    apart = _apart_along_sides(first, second) | _apart_along_sides(second, first).T
    return np.asarray(~apart)


def _apart_along_sides(boxes: Array, others: Array) -> NDArray[np.bool_]:
    """Whether a line along a side of each of `boxes` [N, 9] separates it from each of `others` [M, 9]; bool [N, M]."""
    cosine, sine = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    axes = np.stack([np.stack([cosine, sine], axis=-1), np.stack([-sine, cosine], axis=-1)], axis=1)  # [N, 2, xy]
    offset = box_corners(others)[None, :, :4, :2] - boxes[:, None, None, :2]
    along = np.einsum("nmkc,nac->nmak", offset, axes)  # corners of the others along each axis, from the box's centre
    half = boxes[:, None, 3:5] / 2
    apart = (along.min(axis=-1) >= half) | (along.max(axis=-1) <= -half)
    return np.asarray(apart.any(axis=-1))
