"""Perspective pictures of the same convex parts that the LiDAR senses."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.ground import PIXEL_M, Ground
from bevkd_deploy.data.synthetic.painter import order_footprints, order_parts
from bevkd_deploy.data.synthetic.portable import (
    cos_sin,
    cos_sin_of,
    dot,
    exp,
    extent,
    invert_rigid,
    length,
    product,
    transform,
)
from bevkd_deploy.data.synthetic.profiles import NORMAL, Difficulty
from bevkd_deploy.data.synthetic.rig import Camera
from bevkd_deploy.data.synthetic.world import Snapshot

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Image = NDArray[np.uint8]

NEAR_M = 0.25
_SHIFT = 4
_SHADOW_RGB = (46.0, 46.0, 50.0)
_SHADOW_GROWTH_M = 0.12
#: The noise of a picture is cut out of a larger one, this much larger.
_NOISE_MARGIN_PX = 64
#: The ground is looked up at 1/32 of its pixel.
_REMAP_STEPS = 32
#: ... and at every second pixel of every second row, in images wider than this at every fourth.
_WIDE_PX = 1024
#: Ground farther than this is drawn as if it were here: beyond the ground's picture.
_FAR_M = 1000.0


@dataclass(frozen=True)
class Weather:
    """Light and air of one scene.

    Attributes:
        sun: unit vector to the sun, map frame.
        ambient: share of the light that comes from everywhere.
        haze: colour of the air, RGB.
        zenith: colour of the sky above, RGB.
        haze_m: distance at which 63 % of a colour is lost in the haze.
        exposure: gain of a picture, uniform between the two.
        noise: standard deviation of pixel values, 0..255.
    """

    sun: Array
    ambient: float
    haze: Array
    zenith: Array
    haze_m: float
    exposure: tuple[float, float]
    noise: float


def make_weather(rng: np.random.Generator, difficulty: Difficulty = NORMAL) -> Weather:
    """Sunny to overcast daylight, or dusk."""
    (azimuth_c, elevation_c), (azimuth_s, elevation_s) = cos_sin(
        np.array([rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(25, 65))])
    )
    sun = np.array([azimuth_c * elevation_c, azimuth_s * elevation_c, elevation_s])
    overcast = rng.random()
    haze = np.array([205.0, 212.0, 222.0]) * rng.uniform(0.85, 1.05)
    zenith = (1 - overcast) * np.array([92.0, 142.0, 212.0]) + overcast * np.array([176.0, 182.0, 190.0])
    low, high = difficulty.exposure
    dim = rng.uniform(0.25, 0.4)
    if rng.random() < difficulty.dusk:
        low, high = low * dim, high * dim
    return Weather(sun, 0.5 + 0.2 * overcast, haze, zenith, difficulty.haze_m, (low, high), difficulty.image_noise)


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


@dataclass(frozen=True)
class _View:
    """What one camera of a scene sees of an empty plane.

    Attributes:
        horizon_px: rows of the horizon at the left and the right border.
        first_row: the first row that may show ground.
        ground_m: x and y on the ground at every second or fourth pixel, ego frame, float32 [2, h, w].
        sky: BGR of each row above `first_row`, [first_row, 3].
    """

    horizon_px: tuple[float, float]
    first_row: int
    ground_m: NDArray[np.float32]
    sky: Array


class CameraPainter:
    """Paints snapshots of one scene, seen by cameras that stay where they are on the vehicle."""

    def __init__(self, ground: Ground, weather: Weather, size_hw_px: tuple[int, int], rng: np.random.Generator) -> None:
        self._ground_picture = np.ascontiguousarray(ground.picture[..., ::-1])  # BGR, as cv2 encodes
        self._ground, self._weather = ground, weather
        self._brighter, self._darker = _noise(size_hw_px, weather.noise, rng)
        self._views: dict[str, _View] = {}

    def picture(self, snapshot: Snapshot, camera: Camera, ego_pose: Array, rng: np.random.Generator) -> Image:
        """The camera's picture, BGR [H, W, 3]; `ego_pose` is x, y, yaw in the map frame."""
        gain = float(rng.uniform(*self._weather.exposure))
        image = self._background(camera, ego_pose, gain)
        polygons = visible_polygons(snapshot, camera, self._weather, float(ego_pose[2]))
        colors = np.round(np.minimum(polygons.colors[:, ::-1] * gain, 255.0)).tolist()
        for points, color in zip(polygons.points, colors, strict=True):
            cv2.fillConvexPoly(image, points, color, cv2.LINE_8, _SHIFT)
        height, width = camera.size_hw_px
        top, left = (int(n) for n in rng.integers(0, _NOISE_MARGIN_PX, 2))
        cut = np.s_[top : top + height, left : left + width]
        cv2.add(image, self._brighter[cut], dst=image)
        cv2.subtract(image, self._darker[cut], dst=image)
        return image

    def _background(self, camera: Camera, ego_pose: Array, gain: float) -> Image:
        if camera.name not in self._views:
            self._views[camera.name] = _make_view(camera, self._weather)
        view = self._views[camera.name]
        height, width = camera.size_hw_px
        first = view.first_row
        image = np.empty((height, width, 3), dtype=np.uint8)
        if first > 0:
            sky = np.round(np.minimum(view.sky * gain, 255.0)).astype(np.uint8)
            _fill_rows(image[:first], sky)
        if first < height:
            # Integers only: look-up at 1/32 pixel, then enlarging by the resize that is exact by contract.
            levels = np.round(np.minimum(np.arange(256) * gain, 255.0)).astype(np.uint8)
            ground = cv2.LUT(self._ground_seen(view, ego_pose), levels)
            cv2.resize(ground, (width, height - first), dst=image[first:], interpolation=cv2.INTER_LINEAR_EXACT)
        left, right = view.horizon_px
        band = np.array([[0, first], [width, first], [width, right + 1.5], [0, left + 1.5]])
        haze = [min(255.0, round(float(c) * gain)) for c in self._weather.haze[::-1]]
        cv2.fillConvexPoly(image, np.round(band * 2**_SHIFT).astype(np.int32), haze, cv2.LINE_8, _SHIFT)
        return image

    def _ground_seen(self, view: _View, ego_pose: Array) -> Image:
        """The ground at some pixels below the horizon, BGR."""
        cos, sin = (np.float32(n * _REMAP_STEPS / PIXEL_M) for n in cos_sin(ego_pose[2]))
        shift = (ego_pose[:2] - self._ground.origin) * (_REMAP_STEPS / PIXEL_M)
        x, y = view.ground_m
        column = x * cos
        column -= y * sin
        column += np.float32(shift[0])
        row = x * sin
        row += y * cos
        row += np.float32(shift[1])
        columns, rows = column.astype(np.int32), row.astype(np.int32)
        whole = np.empty((*columns.shape, 2), dtype=np.int16)
        whole[..., 0], whole[..., 1] = columns >> 5, rows >> 5
        part = ((rows & 31) << 5 | (columns & 31)).astype(np.uint16)
        far = tuple(self._ground.far_color[::-1])
        return np.asarray(
            cv2.remap(self._ground_picture, whole, part, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, far),
            dtype=np.uint8,
        )


def _fill_rows(image: Image, colors: Image) -> None:
    """Give every row [W, 3] of an image one colour of [H, 3], by doubling what is filled."""
    flat = image.reshape(len(image), -1)
    flat[:, :3] = colors
    done, total = 3, flat.shape[1]
    while done < total:
        more = min(done, total - done)
        flat[:, done : done + more] = flat[:, :more]
        done += more


def _noise(size_hw_px: tuple[int, int], sigma: float, rng: np.random.Generator) -> tuple[Image, Image]:
    """Normal noise of a picture larger than the camera's, as what is added and what is taken away."""
    quantiles = np.array([NormalDist().inv_cdf((n + 0.5) / 256) for n in range(256)])
    levels = np.round(sigma * quantiles).astype(np.int64)
    shape = (size_hw_px[0] + _NOISE_MARGIN_PX, size_hw_px[1] + _NOISE_MARGIN_PX, 3)
    drawn = np.frombuffer(rng.bytes(shape[0] * shape[1] * 3), dtype=np.uint8).reshape(shape)
    brighter, darker = (np.clip(sign * levels, 0, 255).astype(np.uint8) for sign in (1, -1))
    return np.asarray(cv2.LUT(drawn, brighter), dtype=np.uint8), np.asarray(cv2.LUT(drawn, darker), dtype=np.uint8)


def _make_view(camera: Camera, weather: Weather) -> _View:
    height, width = camera.size_hw_px
    rays = product(camera.cam2ego[:3, :3], _img2cam(camera))
    up = rays[2]  # height of the pixel's ray, as a linear function of the pixel
    horizon = float(-up[2] / up[1]), float(-(up[2] + up[0] * width) / up[1])
    first = int(np.clip(np.floor(min(horizon)), 0, height))
    step = 4 if width > _WIDE_PX else 2
    first -= (first - height) % step
    # Centres of blocks: that is where the resize takes its source's pixels to be.
    columns = np.arange((step - 1) / 2, width, step)
    rows = np.arange(first + (step - 1) / 2, height, step)[:, None]
    x, y, z = (row[0] * columns + row[1] * rows + row[2] for row in rays)
    reach = camera.cam2ego[2, 3] / np.maximum(-z, 1e-9)
    reach = np.minimum(reach, _FAR_M / length(x, y))
    ground = np.stack([camera.cam2ego[0, 3] + x * reach, camera.cam2ego[1, 3] + y * reach]).astype(np.float32)
    share = np.arange(first)[:, None] / max(first - 1, 1)
    share = share * np.sqrt(share)
    sky = np.clip(weather.zenith * (1 - share) + weather.haze * share, 0, 255)[:, ::-1]
    return _View(horizon, first, ground, sky)


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
    toward = dot(snapshot.face_normals, eye - snapshot.face_points[:, 0])
    faces = np.flatnonzero(in_view[snapshot.face_owner] & (toward > 1e-6))
    owners = snapshot.face_owner[faces]
    rank = np.zeros(len(snapshot.things), dtype=np.int64)
    rows = np.flatnonzero(in_view)
    rank[rows] = order_footprints(snapshot.boxes[rows][:, [0, 1, 3, 4, 6]], eye[:2])
    part_rank = np.zeros((len(snapshot.things), snapshot.order_planes.shape[1]), dtype=np.int64)
    part_rank[rows] = order_parts(snapshot.order_planes[rows], _in_own_frames(eye, snapshot.boxes[rows]))
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
    cam = transform(invert_rigid(camera.cam2ego), points)
    depth = cam[..., 2]
    pixels = (cam[..., :2] / np.maximum(depth, NEAR_M)[..., None]) * camera.cam2img[[0, 1], [0, 1]]
    pixels += camera.cam2img[:2, 2]
    height, width = camera.size_hw_px
    low, high = extent(pixels)
    size = high - low
    inside = (high[:, 0] > -1) & (high[:, 1] > -1) & (low[:, 0] < width) & (low[:, 1] < height)
    inside &= (size[:, 0] > 1.2) | (size[:, 1] > 1.2)
    nearest, farthest = extent(depth)
    crossing = (nearest < NEAR_M) & (farthest >= NEAR_M)
    keep = np.flatnonzero((inside & (nearest >= NEAR_M)) | crossing)
    fixed = np.round(pixels[keep] * 2**_SHIFT).astype(np.int32)
    result = [polygon[:size] for polygon, size in zip(fixed, sizes[keep].tolist(), strict=True)]
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
    radius = length(boxes[:, 3], boxes[:, 4], boxes[:, 5]) / 2 + 0.3
    center = transform(invert_rigid(camera.cam2ego), boxes[:, :3])
    height, width = camera.size_hw_px
    left = camera.cam2img[0, 2] / camera.cam2img[0, 0]
    right = (width - camera.cam2img[0, 2]) / camera.cam2img[0, 0]
    visible: NDArray[np.bool_] = np.asarray(center[:, 2] > NEAR_M - radius)
    for tangent, sign in ((left, 1.0), (right, -1.0)):
        visible &= (sign * center[:, 0] + tangent * center[:, 2]) / np.sqrt(1.0 + tangent * tangent) > -radius
    return visible


def _in_own_frames(point: Array, boxes: Array) -> Array:
    """A point of the ego frame in the frame of each thing (origin on the ground), [N, 3]."""
    delta = point[:2] - boxes[:, :2]
    cos, sin = cos_sin(boxes[:, 6])
    return np.stack(
        [delta[:, 0] * cos + delta[:, 1] * sin, delta[:, 1] * cos - delta[:, 0] * sin, np.full(len(boxes), point[2])],
        axis=1,
    )


def _shadows(boxes: Array) -> Array:
    """A dark patch under each thing, [N, 8, 3]."""
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = signs * (boxes[:, None, 3:5] + 2 * _SHADOW_GROWTH_M)
    cos, sin = cos_sin(boxes[:, None, 6])
    x = boxes[:, None, 0] + local[..., 0] * cos - local[..., 1] * sin
    y = boxes[:, None, 1] + local[..., 0] * sin + local[..., 1] * cos
    square = np.stack([x, y, np.zeros_like(x)], axis=-1)
    return np.concatenate([square, np.repeat(square[:, -1:], 4, axis=1)], axis=1)


def _shaded(snapshot: Snapshot, faces: Index, weather: Weather, ego_yaw_rad: float) -> Array:
    """Lambert's law with an ambient share, RGB [M, 3]."""
    cos, sin = cos_sin_of(ego_yaw_rad)
    east, north, up = weather.sun
    sun = np.array([cos * east + sin * north, cos * north - sin * east, up])
    normals = snapshot.face_normals[faces]
    light = weather.ambient + (1.15 - weather.ambient) * np.maximum(dot(normals, sun), 0.0) + 0.08 * normals[:, 2]
    result: Array = np.minimum(snapshot.face_colors[faces] * light[:, None], 255.0)
    return result


def _hazy(colors: Array, points: Array, eye: Array, weather: Weather) -> Array:
    x, y, z = (points[:, 0] - eye).T
    share = (1 - exp(-length(x, y, z) / weather.haze_m))[:, None]
    result: Array = colors * (1 - share) + weather.haze * share
    return result


def _img2cam(camera: Camera) -> Array:
    """Inverse of the intrinsics, [3, 3]."""
    (fx, _, cx), (_, fy, cy), _ = camera.cam2img.tolist()
    return np.array([[1 / fx, 0, -cx / fx], [0, 1 / fy, -cy / fy], [0, 0, 1.0]])
