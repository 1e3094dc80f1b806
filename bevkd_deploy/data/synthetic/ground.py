"""The painted ground of one scene: one picture of the street from above, looked up by cameras and LiDAR."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic import street as roads
from bevkd_deploy.data.synthetic.layout import Layout
from bevkd_deploy.data.synthetic.portable import cos_sin

Array = NDArray[np.float64]

PIXEL_M = 0.1
#: The picture reaches this far beyond the ego path; farther ground has one colour.
MARGIN_M = 62.0
_SHIFT = 4

_GRASS = (86, 104, 62)
_ASPHALT = (84, 84, 88)
_PARKING = (94, 93, 96)
_SIDEWALK = (142, 138, 132)
_YARD = (118, 112, 100)
_WHITE = (206, 206, 202)
_YELLOW = (196, 166, 60)


@dataclass(frozen=True)
class Ground:
    """A picture of the ground.

    Attributes:
        picture: RGB, [H, W, 3] uint8; column along map x, row along map y.
        origin: map x, y of the centre of pixel (0, 0), metres.
        far_color: RGB of the ground beyond the picture.
    """

    picture: NDArray[np.uint8]
    origin: tuple[float, float]
    far_color: tuple[int, int, int]

    def reflectivity(self, points_ego: Array, ego_pose: Array) -> Array:
        """LiDAR reflectivity 0..0.9 at ground points [N, 2] of the ego frame at pose (x, y, yaw): bright is shiny."""
        cos, sin = cos_sin(ego_pose[2])
        x, y = points_ego[:, 0], points_ego[:, 1]
        shift_x, shift_y = ego_pose[0] - self.origin[0], ego_pose[1] - self.origin[1]
        column = np.round((cos * x - sin * y + shift_x) / PIXEL_M).astype(np.int64)
        row = np.round((sin * x + cos * y + shift_y) / PIXEL_M).astype(np.int64)
        height, width = self.picture.shape[:2]
        place = np.clip(row, 0, height - 1) * width + np.clip(column, 0, width - 1)
        colors = np.take(self.picture.reshape(-1, 3), place, axis=0).astype(np.float64)
        share = (colors[:, 0] + colors[:, 1] + colors[:, 2]) / 765.0
        result: Array = 0.9 * (share * share)
        return result


def paint_ground(layout: Layout, rng: np.random.Generator) -> Ground:
    """Paint road, lanes, parking rows, sidewalks and cross-streets of a scene."""
    low = layout.ego[:, :2].min(axis=0) - MARGIN_M
    high = layout.ego[:, :2].max(axis=0) + MARGIN_M
    width, height = (int(n) for n in np.ceil((high - low) / PIXEL_M))
    picture = np.full((height, width, 3), _GRASS, dtype=np.uint8)
    painter = _Painter(picture, layout, (float(low[0]), float(low[1])))
    _paint_surfaces(painter)
    _paint_marks(painter)
    tiled = np.tile(_grain(rng), (height // 256 + 1, width // 256 + 1, 1))[:height, :width]
    textured = cv2.add(picture, tiled, dtype=cv2.CV_8U)
    return Ground(np.asarray(textured, dtype=np.uint8), painter.origin, _GRASS)


def _grain(rng: np.random.Generator) -> NDArray[np.int16]:
    """Fine and coarse brightness changes of the ground, [256, 256, 3]."""
    coarse = rng.normal(0, 9, (32, 32))
    place = np.arange(256) / 8.0
    low = place.astype(np.int64)
    high, share = (low + 1) % 32, place - low
    coarse = coarse[low] * (1 - share)[:, None] + coarse[high] * share[:, None]
    coarse = coarse[:, low] * (1 - share) + coarse[:, high] * share
    grain = np.round(rng.normal(0, 7, (256, 256)) + coarse).astype(np.int16)
    return np.repeat(grain[..., None], 3, axis=2)


class _Painter:
    """Draws strips given in street coordinates."""

    def __init__(self, picture: NDArray[np.uint8], layout: Layout, origin: tuple[float, float]) -> None:
        self._picture = picture
        self.street = layout.street
        self.origin = origin
        self.span = (float(layout.ego_s[0]) - 90.0, float(layout.ego_s[-1]) + 90.0)
        self.crossings = [c for c in layout.street.crossings_s_m if self.span[0] < c < self.span[1]]

    def strip(self, s: tuple[float, float], d: tuple[float, float], color: tuple[int, int, int]) -> None:
        """Fill the area between s[0]..s[1] along and d[0]..d[1] across the street."""
        along = np.linspace(s[0], s[1], max(2, int((s[1] - s[0]) / 2.0)))
        sides = [self.street.pose(along, np.full(len(along), edge))[:, :2] for edge in d]
        polygon = np.concatenate([sides[0], sides[1][::-1]])
        pixels = np.round((polygon - self.origin) / PIXEL_M * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self._picture, [pixels], color, cv2.LINE_8, _SHIFT)


def _paint_surfaces(painter: _Painter) -> None:
    span = painter.span
    edge, walk = roads.ROAD_EDGE_M, roads.SIDEWALK_EDGE_M
    painter.strip(span, (-34, 34), _YARD)
    painter.strip(span, (-walk, walk), _SIDEWALK)
    half = roads.CROSSING_HALF_WIDTH_M
    for center in painter.crossings:
        painter.strip((center - half, center + half), (-60, 60), _SIDEWALK)
        painter.strip((center - half + 1.5, center + half - 1.5), (-60, 60), _ASPHALT)
    painter.strip(span, (-edge, edge), _PARKING)
    painter.strip(span, (-7.0, 7.0), _ASPHALT)
    for center in painter.crossings:
        painter.strip((center - half + 1.5, center + half - 1.5), (-edge - 1, edge + 1), _ASPHALT)


def _paint_marks(painter: _Painter) -> None:
    """Kerbs, dividers, dashes, parking bays, zebra crossings."""
    edge = roads.ROAD_EDGE_M
    half = roads.CROSSING_HALF_WIDTH_M
    cuts = [painter.span[0], *(c + k * (half + 3.5) for c in painter.crossings for k in (-1, 1)), painter.span[1]]
    for start, stop in zip(cuts[::2], cuts[1::2], strict=True):
        if stop - start < 1.0:
            continue
        for d in (-0.18, 0.18):
            painter.strip((start, stop), (d - 0.07, d + 0.07), _YELLOW)
        for side in (-1, 1):
            painter.strip((start, stop), (side * 6.95, side * 7.08), _WHITE)
            painter.strip((start, stop), (side * edge, side * (edge + 0.25)), (176, 172, 166))
            for dash in np.arange(start, stop - 3, 8.0):
                painter.strip((dash, dash + 3.0), (side * 3.43, side * 3.57), _WHITE)
            for bay in np.arange(start, stop, 6.2):
                painter.strip((bay, bay + 0.12), (side * 7.1, side * edge), _WHITE)
    for center in painter.crossings:
        for side in (-1, 1):
            near = center + side * (half - 1.0)
            for d in np.arange(-6.8, 6.5, 1.0):
                painter.strip((min(near, near + side * 2.6), max(near, near + side * 2.6)), (d, d + 0.5), _WHITE)
