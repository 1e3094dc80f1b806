"""The order in which a camera paints: whatever hides comes after what it hides.

Things never overlap on the ground, so for two footprints there is a line between them, and the one on the camera's
side of that line cannot be hidden by the other. Parts of one thing are ordered by planes between them likewise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.portable import cos_sin, dot, extent, length

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


def order_footprints(boxes: Array, camera_xy: Array) -> Index:
    """Rank of each footprint, 0 is painted first.

    Args:
        boxes: x, y, length, width, yaw of the footprints, ego frame, [N, 5].
        camera_xy: the camera's position, ego frame, [2].

    Returns:
        Ranks, [N].
    """
    corners = _corners(boxes)
    distance = length(boxes[:, 0] - camera_xy[0], boxes[:, 1] - camera_xy[1])
    first = _may_hide(boxes, corners, camera_xy, distance).T & _same_direction(corners, camera_xy, boxes)
    waiting = first.sum(axis=0)  # how many must be painted before each
    rank = np.zeros(len(boxes), dtype=np.int64)
    pending = distance.copy()
    for step in range(len(boxes)):
        free = np.where(waiting == 0, pending, -np.inf)
        chosen = int(free.argmax())
        if free[chosen] == -np.inf:  # a ring of things hiding one another: begin with the farthest
            chosen = int(pending.argmax())
        rank[chosen] = step
        pending[chosen] = -np.inf
        waiting -= first[chosen]
    return rank


def order_parts(order_planes: Array, cameras_own: Array) -> Index:
    """Rank of each part within its thing, 0 is painted first.

    Args:
        order_planes: for parts (a, b) a plane with a inside and b outside, [N, K, K, 4].
        cameras_own: the camera's position in each thing's own frame, [N, 3].

    Returns:
        Ranks, [N, K].
    """
    side = dot(order_planes[..., :3], cameras_own[:, None, None]) - order_planes[..., 3]
    result: Index = (side < 0).sum(axis=-1)  # on a's side of the plane: b comes before a
    return result


def _corners(boxes: Array) -> Array:
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = signs * boxes[:, None, 2:4]
    cos, sin = cos_sin(boxes[:, None, 4])
    x = boxes[:, None, 0] + local[..., 0] * cos - local[..., 1] * sin
    y = boxes[:, None, 1] + local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1)


def _same_direction(corners: Array, camera_xy: Array, boxes: Array) -> Mask:
    """Whether two footprints share a viewing direction, [N, N]."""
    # arctan2 may differ in the last bit between machines; it only decides, with a margin of 0.01, and is never written
    center = np.arctan2(boxes[:, 1] - camera_xy[1], boxes[:, 0] - camera_xy[0])
    angles = np.arctan2(corners[..., 1] - camera_xy[1], corners[..., 0] - camera_xy[0]) - center[:, None]
    angles = (angles + np.pi) % (2 * np.pi) - np.pi
    low, high = extent(angles)
    half = (high - low) / 2
    middle = center + (high + low) / 2
    apart = np.abs((middle[:, None] - middle + np.pi) % (2 * np.pi) - np.pi)
    result: Mask = apart <= half[:, None] + half + 0.01
    return result


def _may_hide(boxes: Array, corners: Array, camera_xy: Array, distance: Array) -> Mask:
    """[i, j]: i may hide j, as far as the lines between the two footprints tell."""
    count = len(boxes)
    may = ~np.eye(count, dtype=bool)
    for turn, half in ((0.0, boxes[:, 2] / 2), (np.pi / 2, boxes[:, 3] / 2)):
        x, y = cos_sin(boxes[:, 4] + turn)
        center = boxes[:, 0] * x + boxes[:, 1] * y
        along = x[:, None, None] * corners[..., 0].T + y[:, None, None] * corners[..., 1].T - center[:, None, None]
        low, high = extent(along)  # of j, along i's axis, from i's centre
        camera = (camera_xy[0] * x + camera_xy[1] * y - center)[:, None]
        for near, far_camera in ((low, camera), (-high, -camera)):
            apart = near >= half[:, None]
            may &= ~((apart & (far_camera <= near)).T)  # camera on i's side: j cannot hide i
            may &= ~(apart & (far_camera >= half[:, None]))  # camera on j's side: i cannot hide j
    both = may & may.T
    return np.where(both, distance[:, None] < distance, may)
