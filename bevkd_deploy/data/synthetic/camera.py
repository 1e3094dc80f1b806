"""Perspective pictures of the same convex parts that the LiDAR senses."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.ground import Ground
from bevkd_deploy.data.synthetic.painter import order_footprints, order_parts
from bevkd_deploy.data.synthetic.rig import Camera
from bevkd_deploy.data.synthetic.world import Snapshot
from bevkd_deploy.geometry.frames import invert

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Image = NDArray[np.uint8]

NEAR_M = 0.25
_SHIFT = 4
_NOISE_MEAN = 24
_SHADOW_RGB = (46.0, 46.0, 50.0)
_SHADOW_GROWTH_M = 0.12
_HAZE_M = 180.0


@dataclass(frozen=True)
class Weather:
    """Light of one scene: unit vector to the sun (map frame), ambient share, haze and sky colours (RGB)."""

    sun: Array
    ambient: float
    haze: Array
    zenith: Array


def make_weather(rng: np.random.Generator) -> Weather:
    """Sunny to overcast daylight."""
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(25, 65))
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    overcast = rng.random()
    haze = np.array([205.0, 212.0, 222.0]) * rng.uniform(0.85, 1.05)
    zenith = (1 - overcast) * np.array([92.0, 142.0, 212.0]) + overcast * np.array([176.0, 182.0, 190.0])
    return Weather(sun, 0.5 + 0.2 * overcast, haze, zenith)


@dataclass(frozen=True)
class Polygons:
    """What a camera paints, in painting order.

    Attributes:
        points: integer pixel coordinates times 2**4, one array [n, 2] per polygon.
        colors: RGB, [M, 3].
        owners: row of the snapshot's thing, -1 for shadows, [M].
    """

    points: list[NDArray[np.int32]]
    colors: Array
    owners: Index


class CameraPainter:
    """Paints snapshots of one scene."""

    def __init__(self, ground: Ground, weather: Weather, size_hw_px: tuple[int, int], rng: np.random.Generator) -> None:
        self._ground_picture = np.ascontiguousarray(ground.picture[..., ::-1])  # BGR, as cv2 encodes
        self._ground, self._weather = ground, weather
        height, width = size_hw_px
        noise = rng.normal(_NOISE_MEAN, 3.0, (height + 64, width + 64, 3))
        self._noise = np.clip(np.round(noise), 0, 255).astype(np.uint8)
        self._skies: dict[int, Image] = {}

    def picture(self, snapshot: Snapshot, camera: Camera, ego_pose: Array, rng: np.random.Generator) -> Image:
        """The camera's picture, BGR [H, W, 3]; `ego_pose` is x, y, yaw in the map frame."""
        gain = rng.uniform(0.88, 1.1)
        image = self._background(camera, ego_pose)
        polygons = visible_polygons(snapshot, camera, self._weather, float(ego_pose[2]))
        colors = np.round(polygons.colors[:, ::-1]).tolist()
        for points, color in zip(polygons.points, colors, strict=True):
            cv2.fillConvexPoly(image, points, color, cv2.LINE_8, _SHIFT)
        height, width = camera.size_hw_px
        top, left = (int(n) for n in rng.integers(0, 64, 2))
        noise = self._noise[top : top + height, left : left + width]
        return np.asarray(cv2.addWeighted(image, gain, noise, 1.0, -_NOISE_MEAN), dtype=np.uint8)

    def _background(self, camera: Camera, ego_pose: Array) -> Image:
        height, width = camera.size_hw_px
        rows = _horizon_rows(camera)
        first = int(np.clip(np.floor(min(rows)), 0, height))
        image = np.empty((height, width, 3), dtype=np.uint8)
        if first not in self._skies:  # one horizon per camera
            self._skies[first] = np.repeat(self._sky(first)[:, None], width, axis=1)
        image[:first] = self._skies[first]
        far = tuple(self._ground.far_color[::-1])
        if first < height:
            lift = np.array([[1.0, 0, 0], [0, 1.0, first], [0, 0, 1.0]])
            image2picture = self._ground.map2picture() @ _image2map(camera, ego_pose) @ lift
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            image[first:] = cv2.warpPerspective(
                self._ground_picture, image2picture, (width, height - first), None, flags, cv2.BORDER_CONSTANT, far
            )
        left, right = rows
        band = np.array([[0, first], [width, first], [width, right + 1.5], [0, left + 1.5]])
        haze = [float(c) for c in self._weather.haze[::-1]]
        cv2.fillConvexPoly(image, np.round(band * 2**_SHIFT).astype(np.int32), haze, cv2.LINE_8, _SHIFT)
        return image

    def _sky(self, rows: int) -> Image:
        """Sky colours from the top row to the horizon, BGR [rows, 3]."""
        share = np.linspace(0, 1, max(rows, 1))[:rows, None] ** 1.5
        color = self._weather.zenith * (1 - share) + self._weather.haze * share
        return np.round(np.clip(color, 0, 255)[:, ::-1]).astype(np.uint8)


def owner_image(snapshot: Snapshot, camera: Camera, weather: Weather) -> NDArray[np.int32]:
    """Which thing each pixel shows: row in the snapshot plus 1, 0 for ground, shadow and sky; [H, W]."""
    polygons = visible_polygons(snapshot, camera, weather, 0.0)
    image = np.zeros(camera.size_hw_px, dtype=np.int32)
    for points, owner in zip(polygons.points, polygons.owners, strict=True):
        if owner >= 0:
            cv2.fillConvexPoly(image, points, int(owner) + 1, cv2.LINE_8, _SHIFT)
    return image


def visible_polygons(snapshot: Snapshot, camera: Camera, weather: Weather, ego_yaw_rad: float) -> Polygons:
    """Project, clip, shade and sort the faces and shadows that the camera can see."""
    eye = camera.cam2ego[:3, 3]
    in_view = _things_in_view(snapshot, camera)
    toward = np.einsum("fc,fc->f", snapshot.face_normals, eye - snapshot.face_points[:, 0])
    faces = np.flatnonzero(in_view[snapshot.face_owner] & (toward > 1e-6))
    owners = snapshot.face_owner[faces]
    rank = np.zeros(len(snapshot.things), dtype=np.int64)
    rows = np.flatnonzero(in_view)
    rank[rows] = order_footprints(snapshot.boxes[rows][:, [0, 1, 3, 4, 6]], eye[:2])
    part_rank = order_parts(snapshot.order_planes, _in_own_frames(eye, snapshot.boxes))
    order = np.lexsort((faces, part_rank[owners, snapshot.face_parts[faces]], rank[owners]))
    faces, owners = faces[order], owners[order]

    shadows = _shadows(snapshot.boxes[rows])
    points = np.concatenate([shadows, snapshot.face_points[faces]])
    sizes = np.concatenate([np.full(len(rows), 4), snapshot.face_sizes[faces]])
    colors = np.concatenate([np.tile(_SHADOW_RGB, (len(rows), 1)), _shaded(snapshot, faces, weather, ego_yaw_rad)])
    owners = np.concatenate([np.full(len(rows), -1), owners])
    return _project(points, sizes, _hazy(colors, points, eye, weather), owners, camera)


def _project(points: Array, sizes: Index, colors: Array, owners: Index, camera: Camera) -> Polygons:
    """Polygons [M, 8, 3] of the ego frame in pixels; those behind the camera or outside the image are left out."""
    ego2cam = invert(camera.cam2ego)
    cam = points @ ego2cam[:3, :3].T + ego2cam[:3, 3]
    depth = cam[..., 2]
    behind = depth < NEAR_M
    pixels = (cam[..., :2] / np.maximum(depth, NEAR_M)[..., None]) * camera.cam2img[[0, 1], [0, 1]]
    pixels += camera.cam2img[:2, 2]
    height, width = camera.size_hw_px
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    inside = ((high > -1) & (low < [width, height])).all(axis=1) & ((high - low).max(axis=1) > 1.2)
    crossing = behind.any(axis=1) & ~behind.all(axis=1)
    keep = np.flatnonzero((inside & ~behind.any(axis=1)) | crossing)
    fixed = np.round(pixels * 2**_SHIFT).astype(np.int32)
    result = [fixed[index, : sizes[index]] for index in keep]
    for place in np.flatnonzero(crossing[keep]):
        index = keep[place]
        clipped = _clip_near(cam[index, : sizes[index]])
        uv = clipped[:, :2] / clipped[:, 2:] * camera.cam2img[[0, 1], [0, 1]] + camera.cam2img[:2, 2]
        result[place] = np.round(uv * 2**_SHIFT).astype(np.int32)
    return Polygons(result, colors[keep], owners[keep])


def _clip_near(polygon: Array) -> Array:
    """The part of a polygon [n, 3] of the camera frame beyond the near plane."""
    result = []
    for start, stop in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] >= NEAR_M:
            result.append(start)
        if (start[2] >= NEAR_M) != (stop[2] >= NEAR_M):
            share = (NEAR_M - start[2]) / (stop[2] - start[2])
            result.append(start + share * (stop - start))
    return np.array(result)


def _things_in_view(snapshot: Snapshot, camera: Camera) -> NDArray[np.bool_]:
    """Whether the bounding sphere of each thing reaches into the camera's view."""
    boxes = snapshot.boxes
    radius = np.linalg.norm(boxes[:, 3:6], axis=1) / 2 + 0.3
    ego2cam = invert(camera.cam2ego)
    center = boxes[:, :3] @ ego2cam[:3, :3].T + ego2cam[:3, 3]
    height, width = camera.size_hw_px
    left = camera.cam2img[0, 2] / camera.cam2img[0, 0]
    right = (width - camera.cam2img[0, 2]) / camera.cam2img[0, 0]
    visible: NDArray[np.bool_] = np.asarray(center[:, 2] > NEAR_M - radius)
    for tangent, sign in ((left, 1.0), (right, -1.0)):
        visible &= (sign * center[:, 0] + tangent * center[:, 2]) / np.hypot(1.0, tangent) > -radius
    return visible


def _in_own_frames(point: Array, boxes: Array) -> Array:
    """A point of the ego frame in the frame of each thing (origin on the ground), [N, 3]."""
    delta = point[:2] - boxes[:, :2]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    return np.stack(
        [delta[:, 0] * cos + delta[:, 1] * sin, delta[:, 1] * cos - delta[:, 0] * sin, np.full(len(boxes), point[2])],
        axis=1,
    )


def _shadows(boxes: Array) -> Array:
    """A dark patch under each thing, [N, 8, 3]."""
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = signs * (boxes[:, None, 3:5] + 2 * _SHADOW_GROWTH_M)
    cos, sin = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    x = boxes[:, None, 0] + local[..., 0] * cos - local[..., 1] * sin
    y = boxes[:, None, 1] + local[..., 0] * sin + local[..., 1] * cos
    square = np.stack([x, y, np.zeros_like(x)], axis=-1)
    return np.concatenate([square, np.repeat(square[:, -1:], 4, axis=1)], axis=1)


def _shaded(snapshot: Snapshot, faces: Index, weather: Weather, ego_yaw_rad: float) -> Array:
    """Lambert's law with an ambient share, RGB [M, 3]."""
    cos, sin = np.cos(ego_yaw_rad), np.sin(ego_yaw_rad)
    east, north, up = weather.sun
    sun = np.array([cos * east + sin * north, cos * north - sin * east, up])
    normals = snapshot.face_normals[faces]
    light = weather.ambient + (1.15 - weather.ambient) * np.maximum(normals @ sun, 0.0) + 0.08 * normals[:, 2]
    result: Array = np.minimum(snapshot.face_colors[faces] * light[:, None], 255.0)
    return result


def _hazy(colors: Array, points: Array, eye: Array, weather: Weather) -> Array:
    distance = np.linalg.norm(points[:, 0] - eye, axis=1)
    share = (1 - np.exp(-distance / _HAZE_M))[:, None]
    result: Array = colors * (1 - share) + weather.haze * share
    return result


def _image2map(camera: Camera, ego_pose: Array) -> Array:
    """Homography from pixels to the map's ground plane (x, y, 1), [3, 3]."""
    x, y, z = camera.cam2ego[:3, 3]
    ground = np.array([[-z, 0, x], [0, -z, y], [0, 0, 1.0]])
    image2ego = ground @ camera.cam2ego[:3, :3] @ np.linalg.inv(camera.cam2img)
    cos, sin = np.cos(ego_pose[2]), np.sin(ego_pose[2])
    ego2map = np.array([[cos, -sin, ego_pose[0]], [sin, cos, ego_pose[1]], [0, 0, 1.0]])
    return ego2map @ image2ego


def _horizon_rows(camera: Camera) -> tuple[float, float]:
    """Rows of the horizon at the left and the right image border."""
    up = camera.cam2ego[2, :3]  # the ego frame's z axis in the camera frame
    line = up @ np.linalg.inv(camera.cam2img)
    width = camera.size_hw_px[1]
    return float(-line[2] / line[1]), float(-(line[2] + line[0] * width) / line[1])
