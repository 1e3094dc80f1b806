"""Convex parts from which every object is composed, shared by the LiDAR and the cameras.

A shape lives in its object's frame: x forward, y left, z up, origin on the ground below the box centre, metres.
The LiDAR intersects rays with the parts' planes; the cameras fill the parts' faces. One geometry, so both agree.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.portable import cos_sin, cos_sin_of, dot, length, transform

Array = NDArray[np.float64]
Color = tuple[float, float, float]

MAX_CORNERS = 16
MAX_PLANES = 10
MAX_POLYGON = 8

#: Side faces of a box part, in the order they are built.
SIDES = {"front": 0, "left": 1, "back": 2, "right": 3}


@dataclass(frozen=True)
class Shape:
    """A composite of convex parts.

    Attributes:
        part_points: corners of each part, padded with repeats, [P, 16, 3].
        part_planes: outward normal and offset (inside: n.p <= d), padded with planes that hold everywhere, [P, 10, 4].
        part_reflectivity: LiDAR reflectivity of each part, 0..1, [P].
        face_points: polygons, padded with repeats of the last corner, [F, 8, 3].
        face_sizes: corner count of each polygon, [F].
        face_normals: outward unit normals, [F, 3].
        face_colors: RGB 0..255, [F, 3].
        face_parts: part of each polygon, [F]; a decal follows the face it is painted on.
        order_planes: for parts (a, b) a plane with a inside and b outside, [P, P, 4]; zero where none exists.
    """

    part_points: Array
    part_planes: Array
    part_reflectivity: Array
    face_points: Array
    face_sizes: NDArray[np.int64]
    face_normals: Array
    face_colors: Array
    face_parts: NDArray[np.int64]
    order_planes: Array


class ShapeBuilder:
    """Collects convex parts and the flat details painted on them."""

    def __init__(self) -> None:
        self._points: list[Array] = []
        self._planes: list[Array] = []
        self._reflectivity: list[float] = []
        self._polygons: list[Array] = []
        self._normals: list[Array] = []
        self._colors: list[Color] = []
        self._parts: list[int] = []
        self._last_sides: Array = np.zeros((0, 4, 3))
        self._last_normals: Array = np.zeros((0, 3))

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        *,
        top_inset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        reflectivity: float = 0.3,
        pitch_rad: float = 0.0,
    ) -> ShapeBuilder:
        """Add a box whose top may be narrower by (front, back, each side) metres, tilted nose up by `pitch_rad`."""
        (x0, x1), (y0, y1) = x, y
        front, back, side = top_inset
        base = np.array([[x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        x0, x1, y0, y1 = x0 + back, x1 - front, y0 + side, y1 - side
        top = np.array([[x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        return self._frustum(base, top, z, color, reflectivity, _tilt(pitch_rad, x[0], z[0]))

    def prism(
        self,
        center: tuple[float, float],
        radius: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        *,
        corners: int = 6,
        reflectivity: float = 0.3,
    ) -> ShapeBuilder:
        """Add an upright prism around `center` with the given radius at its bottom and its top."""
        circle = _circle(corners)
        offset = np.asarray(center)
        return self._frustum(offset + radius[0] * circle, offset + radius[1] * circle, z, color, reflectivity, None)

    def wheel(self, x: float, z: float, radius: float, y: tuple[float, float], color: Color) -> ShapeBuilder:
        """Add a disc standing upright, its axis along y."""
        circle = radius * _circle(8)
        turn = np.eye(4)
        turn[:3, :3] = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
        turn[:3, 3] = [x, 0.0, z]
        return self._frustum(circle, circle, y, color, 0.15, turn)

    def decal(
        self, sides: str, u: tuple[float, float], v: tuple[float, float], color: Color, *, round_: bool = False
    ) -> ShapeBuilder:
        """Paint a rectangle (or an ellipse) on side faces of the last part.

        Args:
            sides: names of SIDES separated by spaces.
            u: extent along the side, 0..1, from front to back (on "front" and "back" from one side to the other).
            v: extent upwards, 0..1.
            color: RGB 0..255.
            round_: an octagon inscribed in the rectangle.
        """
        part = len(self._points) - 1
        for name in sides.split():
            quad = self._last_sides[SIDES[name]]
            low, high = (1 - u[1], 1 - u[0]) if name == "right" else u
            corners = _octagon(low, high, v) if round_ else [(low, v[0]), (high, v[0]), (high, v[1]), (low, v[1])]
            self._add_face(_on_quad(quad, np.array(corners)), self._last_normals[SIDES[name]], color, part)
        return self

    def build(self) -> Shape:
        """Freeze the collected parts into arrays."""
        points = np.stack([_pad(item, MAX_CORNERS) for item in self._points])
        planes = np.stack(self._planes)
        return Shape(
            part_points=points,
            part_planes=planes,
            part_reflectivity=np.array(self._reflectivity),
            face_points=np.stack([_pad(item, MAX_POLYGON) for item in self._polygons]),
            face_sizes=np.array([len(item) for item in self._polygons]),
            face_normals=np.stack(self._normals),
            face_colors=np.array(self._colors, dtype=np.float64),
            face_parts=np.array(self._parts),
            order_planes=_order_planes(points, planes),
        )

    def _frustum(
        self, base: Array, top: Array, z: tuple[float, float], color: Color, reflectivity: float, move: Array | None
    ) -> ShapeBuilder:
        n = len(base)
        low = np.column_stack([base, np.full(n, z[0])])
        high = np.column_stack([top, np.full(n, z[1])])
        if move is not None:
            low, high = transform(move, low), transform(move, high)
        follow = np.roll(np.arange(n), -1)
        self._last_sides = np.stack([low, low[follow], high[follow], high], axis=1)
        self._last_normals = _normals(self._last_sides)
        part = len(self._points)
        self._points.append(np.concatenate([low, high]))
        self._reflectivity.append(reflectivity)
        planes = np.zeros((MAX_PLANES, 4))
        planes[:, 3] = 1.0
        ends = np.stack([low[::-1], high])
        for first, polygons, normals in ((0, ends, _normals(ends)), (2, self._last_sides, self._last_normals)):
            planes[first : first + len(polygons), :3] = normals
            planes[first : first + len(polygons), 3] = dot(normals, polygons[:, 0])
            for polygon, normal in zip(polygons, normals, strict=True):
                self._add_face(polygon, normal, color, part)
        self._planes.append(planes)
        return self

    def _add_face(self, polygon: Array, normal: Array, color: Color, part: int) -> None:
        self._polygons.append(polygon)
        self._normals.append(normal)
        self._colors.append(color)
        self._parts.append(part)


def _tilt(pitch_rad: float, x: float, z: float) -> Array | None:
    """Rotation about the lower back edge, nose up."""
    if not pitch_rad:
        return None
    cos, sin = cos_sin_of(pitch_rad)
    move = np.eye(4)
    move[:3, :3] = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    move[:3, 3] = [x - (cos * x - sin * z), 0.0, z - (sin * x + cos * z)]
    return move


@functools.cache
def _circle(corners: int) -> Array:
    """Corners of a regular polygon of radius 1 with two sides across +x and -x, [n, 2]."""
    return np.stack(cos_sin((np.arange(corners) + 0.5) * (2 * np.pi / corners)), axis=1)


def _octagon(low: float, high: float, v: tuple[float, float]) -> list[tuple[float, float]]:
    center, half = ((low + high) / 2, (v[0] + v[1]) / 2), ((high - low) / 2, (v[1] - v[0]) / 2)
    return [(center[0] + half[0] * x, max(0.0, center[1] + half[1] * y)) for x, y in _circle(8).tolist()]


def _on_quad(quad: Array, uv: Array) -> Array:
    """Points of a quadrilateral [4, 3] at shares uv [n, 2] along and up, [n, 3]."""
    u, v = uv[:, :1], uv[:, 1:]
    low, high = quad[0] + u * (quad[1] - quad[0]), quad[3] + u * (quad[2] - quad[3])
    points: Array = low + v * (high - low)
    return points


def _normals(polygons: Array) -> Array:
    """Outward unit normals of convex polygons [n, k, 3], counter-clockwise seen from outside, [n, 3]."""
    (ax, ay, az), (bx, by, bz) = ((polygons[:, k] - polygons[:, 0]).T for k in (1, 2))
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    normals: Array = np.stack([x, y, z], axis=1) / length(x, y, z)[:, None]
    return normals


def _pad(points: Array, count: int) -> Array:
    return points[np.minimum(np.arange(count), len(points) - 1)]


def _order_planes(points: Array, planes: Array) -> Array:
    """For each pair of parts the plane that separates them best: first inside, second outside."""
    outside = dot(planes[:, None, :, None, :3], points[:, None]) - planes[:, None, :, None, 3]
    margin = outside.min(axis=-1)  # [P, P, planes]
    best = margin.argmax(axis=-1)
    rows = np.arange(len(points))
    own = planes[rows[:, None], best]  # plane of a with b outside
    own_margin = np.take_along_axis(margin, best[..., None], axis=-1)[..., 0]
    other, other_margin = -own.transpose(1, 0, 2), own_margin.T  # plane of b with a outside, flipped
    result = np.where((own_margin >= other_margin)[..., None], own, other)
    found = np.maximum(own_margin, other_margin) > -1e-6
    found &= ~np.eye(len(points), dtype=bool)
    return np.where(found[..., None], result, 0.0)
