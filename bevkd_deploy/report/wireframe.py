"""Boxes as line segments, on the ground and in an image.

`report` reads files and imports `contracts` alone, so the few lines of box geometry that drawing needs stand here;
a test holds them against `geometry`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Edges as pairs of `corners` indices: bottom, top, pillars.
EDGES = np.array(
    [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]]
)  # fmt: skip

#: Segments are cut at this depth in front of a camera, in metres.
NEAR_M = 0.1


def corners(boxes: Array) -> Array:
    """Corners [N, 8, 3] of boxes [N, 9]: bottom front-left, front-right, back-right, back-left, then the top."""
    x = np.array([1, 1, -1, -1] * 2) * boxes[:, 3:4] / 2
    y = np.array([1, -1, -1, 1] * 2) * boxes[:, 4:5] / 2
    z = np.array([-1] * 4 + [1] * 4) * boxes[:, 5:6] / 2
    cosine, sine = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1) + boxes[:, None, :3]


def ground_outline(boxes: Array) -> Array:
    """Closed outline [N, 5, 2] of each box seen from above, lidar x and y in metres."""
    return corners(boxes)[:, [0, 1, 2, 3, 0], :2]


def ground_heading(boxes: Array, overhang_m: float = 0.0) -> Array:
    """Tick [N, 2, 2] from the centre of each box to `overhang_m` beyond the middle of its front."""
    reach = boxes[:, 3:4] / 2 + overhang_m
    direction = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=-1)
    return np.stack([boxes[:, :2], boxes[:, :2] + reach * direction], axis=1)


def segments(boxes: Array) -> Array:
    """Twelve edges and the heading tick on the bottom face of each box, [N, 13, 2, 3], lidar frame."""
    points = corners(boxes)
    bottom_centre = points[:, :4].mean(axis=1)
    front_middle = points[:, :2].mean(axis=1)
    heading = np.stack([bottom_centre, front_middle], axis=1)
    return np.concatenate([points[:, EDGES], heading[:, None]], axis=1)


def project_segments(lines: Array, lidar2img: Array, near_m: float = NEAR_M) -> tuple[Array, NDArray[np.bool_]]:
    """Project 3-D segments into an image, cut at the near plane.

    The cut is made before the division by depth: the projection of a point behind the camera lies mirrored in the
    image, so a segment that reaches behind cannot be cut afterwards.

    Args:
        lines: [..., 2, 3], metres, lidar frame.
        lidar2img: 4x4.
        near_m: depth of the near plane along the optical axis.

    Returns:
        Pixels [..., 2, 2] (u right, v down), and bool [...]: whether any of the segment is in front of the plane.
    """
    homogeneous = lines @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    start, stop = homogeneous[..., 0, :], homogeneous[..., 1, :]
    visible = np.asarray((start[..., 2] >= near_m) | (stop[..., 2] >= near_m))
    clipped = np.stack([_pull_forward(start, stop, near_m), _pull_forward(stop, start, near_m)], axis=-2)
    depth_m = np.maximum(clipped[..., 2:], near_m)
    return clipped[..., :2] / depth_m, visible


def _pull_forward(point: Array, other: Array, near_m: float) -> Array:
    """Move points that lie behind the near plane along the segment onto it."""
    depth_m, other_m = point[..., 2:], other[..., 2:]
    span = np.where(np.abs(other_m - depth_m) < 1e-12, 1.0, other_m - depth_m)
    fraction = np.clip((near_m - depth_m) / span, 0.0, 1.0)
    return np.asarray(np.where(depth_m >= near_m, point, point + fraction * (other - point)))
