"""A gently curving street: coordinates along it (s) and to its left (d) against the flat map frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.portable import cos_sin, interpolate

Array = NDArray[np.float64]

LANE_WIDTH_M = 3.5
#: Lane centres to the left of the street axis; traffic keeps right, so negative lanes run along +s.
LANES_M = (-5.25, -1.75, 1.75, 5.25)
EGO_LANE_M = -1.75
PARKING_M = 8.6
ROAD_EDGE_M = 10.0
SIDEWALK_EDGE_M = 14.0
BUILDING_M = 15.8

_STEP_M = 0.5


@dataclass(frozen=True)
class Street:
    """The axis of a street, sampled every half metre.

    Attributes:
        s_m, x_m, y_m, heading_rad: arc length and pose of the axis in the map frame, [K] each.
        crossings_s_m: centres of the cross-streets.
    """

    s_m: Array
    x_m: Array
    y_m: Array
    heading_rad: Array
    crossings_s_m: tuple[float, ...]

    def pose(self, s: Array, d: Array) -> Array:
        """Map pose (x, y, heading of the street) at distance s along and d left of the axis, [N, 3]."""
        start = float(self.s_m[0])
        heading, x, y = (interpolate(s, start, _STEP_M, axis) for axis in (self.heading_rad, self.x_m, self.y_m))
        cos, sin = cos_sin(heading)
        x, y = x - sin * d, y + cos * d
        return np.stack([x, y, heading], axis=-1)

    def in_crossing(self, s: float, margin_m: float = 0.0) -> bool:
        """Whether s lies on a cross-street."""
        return any(abs(s - center) < CROSSING_HALF_WIDTH_M + margin_m for center in self.crossings_s_m)


CROSSING_HALF_WIDTH_M = 6.0


def make_street(extent_m: tuple[float, float], rng: np.random.Generator) -> Street:
    """A street from extent_m[0] to extent_m[1] whose curvature changes slowly, radius above 60 m."""
    s = np.arange(extent_m[0], extent_m[1] + _STEP_M, _STEP_M)
    waves = rng.uniform(90.0, 260.0, 2)
    phases = rng.uniform(0, 2 * np.pi, 2)
    strength = rng.uniform(0.0, 0.007, 2)
    curvature = sum(
        k * cos_sin(2 * np.pi * s / wave + phase)[1] for k, wave, phase in zip(strength, waves, phases, strict=True)
    )
    zero = int(np.argmin(np.abs(s)))
    heading = np.cumsum(curvature) * _STEP_M
    heading += rng.uniform(-np.pi, np.pi) - heading[zero]
    x, y = (np.cumsum(part) * _STEP_M for part in cos_sin(heading))
    first = rng.uniform(15.0, 55.0)
    crossings = tuple(float(c) for c in np.arange(first - 110.0 * 4, extent_m[1], 110.0) if c > extent_m[0])
    return Street(s, x - x[zero], y - y[zero], heading, crossings)
