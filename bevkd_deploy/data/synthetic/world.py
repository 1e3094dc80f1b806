"""All geometry of one scene in flat arrays, moved into the ego frame of any instant at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.layout import SCENERY_RANGE_M, Layout
from bevkd_deploy.data.synthetic.objects import BOX_LIFT_M
from bevkd_deploy.data.synthetic.portable import cos_sin, length

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_MAX_PARTS = 12


@dataclass(frozen=True)
class Snapshot:
    """The part of the world around the ego vehicle at one instant, ego frame, metres.

    Attributes:
        things: index of each thing in the layout, [N].
        boxes: x, y, z (box centre), l, w, h, yaw of each thing, [N, 7].
        annotated: whether the thing is an object with an annotation, [N].
        part_points: [P, 16, 3].
        part_planes: outward normal and offset, [P, 10, 4].
        part_plane_counts: how many of the planes bound the part, [P].
        part_reflectivity: [P].
        part_owner: row of each part in `things`, [P].
        face_points: [F, 8, 3].
        face_sizes: [F].
        face_normals: [F, 3].
        face_colors: RGB, [F, 3].
        face_owner: row of each face in `things`, [F].
        face_parts: part of each face within its thing, [F].
        order_planes: plane between each two parts in the thing's own frame, [N, 12, 12, 4].
    """

    things: Index
    boxes: Array
    annotated: NDArray[np.bool_]
    part_points: Array
    part_planes: Array
    part_plane_counts: Index
    part_reflectivity: Array
    part_owner: Index
    face_points: Array
    face_sizes: Index
    face_normals: Array
    face_colors: Array
    face_owner: Index
    face_parts: Index
    order_planes: Array


class World:
    """A layout packed for sensing."""

    def __init__(self, layout: Layout, object_range_m: float) -> None:
        self.layout = layout
        self._object_range_m = object_range_m
        shapes = [thing.shape for thing in layout.things]
        self._poses = np.stack([thing.poses for thing in layout.things])
        self._sizes = np.array([thing.size for thing in layout.things])
        self._annotated = np.array([bool(thing.category) for thing in layout.things])
        self._part_points = np.concatenate([shape.part_points for shape in shapes])
        self._part_planes = np.concatenate([shape.part_planes for shape in shapes])
        self._part_plane_counts = (self._part_planes[..., :3] != 0).any(axis=2).sum(axis=1)
        self._part_reflectivity = np.concatenate([shape.part_reflectivity for shape in shapes])
        self._part_thing = np.repeat(np.arange(len(shapes)), [len(shape.part_points) for shape in shapes])
        self._face_points = np.concatenate([shape.face_points for shape in shapes])
        self._face_sizes = np.concatenate([shape.face_sizes for shape in shapes])
        self._face_normals = np.concatenate([shape.face_normals for shape in shapes])
        self._face_colors = np.concatenate([shape.face_colors for shape in shapes])
        self._face_parts = np.concatenate([shape.face_parts for shape in shapes])
        self._face_thing = np.repeat(np.arange(len(shapes)), [len(shape.face_points) for shape in shapes])
        self._order_planes = np.zeros((len(shapes), _MAX_PARTS, _MAX_PARTS, 4))
        for index, shape in enumerate(shapes):
            parts = len(shape.part_points)
            self._order_planes[index, :parts, :parts] = shape.order_planes

    def snapshot(self, time_index: int, *, faces: bool = True) -> Snapshot:
        """The world around the ego vehicle at one of the layout's times.

        Args:
            time_index: index into the layout's times.
            faces: False leaves the faces out, which only cameras need.
        """
        poses = self._poses_in_ego(time_index)
        limit = np.where(self._annotated, self._object_range_m, SCENERY_RANGE_M)
        near = length(poses[:, 0], poses[:, 1]) < limit
        things = np.flatnonzero(near)
        row = np.cumsum(near) - 1
        parts = np.flatnonzero(near[self._part_thing])
        shown = np.flatnonzero(near[self._face_thing]) if faces else np.zeros(0, dtype=np.int64)
        part_thing, face_thing = self._part_thing[parts], self._face_thing[shown]
        turn = np.stack(cos_sin(poses[:, 2]), axis=1)
        planes = np.empty((len(parts), *self._part_planes.shape[1:]))
        planes[..., :3] = _rotate(turn[part_thing, None], self._part_planes[parts, :, :3])
        shift = planes[..., 0] * poses[part_thing, None, 0] + planes[..., 1] * poses[part_thing, None, 1]
        planes[..., 3] = self._part_planes[parts, :, 3] + shift
        sizes = self._sizes[things]
        height = BOX_LIFT_M + sizes[:, 2] / 2
        return Snapshot(
            things=things,
            boxes=np.column_stack([poses[things, :2], height, sizes, poses[things, 2]]),
            annotated=self._annotated[things],
            part_points=_place(turn, poses, part_thing, self._part_points[parts]),
            part_planes=planes,
            part_plane_counts=self._part_plane_counts[parts],
            part_reflectivity=self._part_reflectivity[parts],
            part_owner=row[part_thing],
            face_points=_place(turn, poses, face_thing, self._face_points[shown]),
            face_sizes=self._face_sizes[shown],
            face_normals=_rotate(turn[face_thing], self._face_normals[shown]),
            face_colors=self._face_colors[shown],
            face_owner=row[face_thing],
            face_parts=self._face_parts[shown],
            order_planes=self._order_planes[things] if faces else self._order_planes[:0],
        )

    def _poses_in_ego(self, time_index: int) -> Array:
        """x, y, yaw of every thing in the ego frame, [N, 3]."""
        x, y, yaw = self.layout.ego[time_index]
        poses = self._poses[:, time_index] - [x, y, yaw]
        cos, sin = cos_sin(yaw)
        poses[:, 0], poses[:, 1] = poses[:, 0] * cos + poses[:, 1] * sin, poses[:, 1] * cos - poses[:, 0] * sin
        return poses


def _rotate(turn: Array, vectors: Array) -> Array:
    """Turn vectors [..., 3] about +z by angles given as (cosine, sine), [..., 2]."""
    cos, sin = turn[..., 0], turn[..., 1]
    result = np.empty_like(vectors)
    result[..., 0] = cos * vectors[..., 0] - sin * vectors[..., 1]
    result[..., 1] = sin * vectors[..., 0] + cos * vectors[..., 1]
    result[..., 2] = vectors[..., 2]
    return result


def _place(turn: Array, poses: Array, thing: Index, points: Array) -> Array:
    result = _rotate(turn[thing, None], points)
    result[..., :2] += poses[thing, None, :2]
    return result
