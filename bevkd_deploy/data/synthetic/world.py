"""All geometry of one scene in flat arrays, moved into the ego frame of any instant at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.layout import SCENERY_RANGE_M, Layout
from bevkd_deploy.data.synthetic.objects import BOX_LIFT_M

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

    def snapshot(self, time_index: int) -> Snapshot:
        """The world around the ego vehicle at one of the layout's times."""
        x, y, yaw = self.layout.ego[time_index]
        poses = self._poses[:, time_index] - [x, y, yaw]
        cos, sin = np.cos(yaw), np.sin(yaw)
        poses[:, :2] = poses[:, :2] @ np.array([[cos, -sin], [sin, cos]])
        distance = np.hypot(poses[:, 0], poses[:, 1])
        limit = np.where(self._annotated, self._object_range_m, SCENERY_RANGE_M)
        near = distance < limit
        things = np.flatnonzero(near)
        row = np.cumsum(near) - 1
        parts, faces = np.flatnonzero(near[self._part_thing]), np.flatnonzero(near[self._face_thing])
        part_thing, face_thing = self._part_thing[parts], self._face_thing[faces]
        turn = _turns(poses[:, 2])
        part_normals = _rotate(turn[part_thing], self._part_planes[parts, :, :3])
        shift = np.einsum("pkc,pc->pk", part_normals[..., :2], poses[part_thing, :2])
        planes = np.concatenate([part_normals, (self._part_planes[parts, :, 3] + shift)[..., None]], axis=-1)
        sizes = self._sizes[things]
        height = BOX_LIFT_M + sizes[:, 2] / 2
        return Snapshot(
            things=things,
            boxes=np.column_stack([poses[things, :2], height, sizes, poses[things, 2]]),
            annotated=self._annotated[things],
            part_points=_place(turn, poses, part_thing, self._part_points[parts]),
            part_planes=planes,
            part_reflectivity=self._part_reflectivity[parts],
            part_owner=row[part_thing],
            face_points=_place(turn, poses, face_thing, self._face_points[faces]),
            face_sizes=self._face_sizes[faces],
            face_normals=_rotate(turn[face_thing], self._face_normals[faces][:, None])[:, 0],
            face_colors=self._face_colors[faces],
            face_owner=row[face_thing],
            face_parts=self._face_parts[faces],
            order_planes=self._order_planes[things],
        )


def _turns(yaw: Array) -> Array:
    turns = np.zeros((len(yaw), 3, 3))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(yaw)
    turns[:, 1, 0] = np.sin(yaw)
    turns[:, 0, 1] = -turns[:, 1, 0]
    turns[:, 2, 2] = 1.0
    return turns


def _rotate(turns: Array, vectors: Array) -> Array:
    """Rotate vectors [M, K, 3] by one matrix per row, [M, 3, 3]."""
    result: Array = vectors @ turns.transpose(0, 2, 1)
    return result


def _place(turns: Array, poses: Array, thing: Index, points: Array) -> Array:
    result = _rotate(turns[thing], points)
    result[..., :2] += poses[thing, None, :2]
    return result
