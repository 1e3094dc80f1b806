"""A 32-beam spinning LiDAR: exact nearest-hit ray casting against the convex parts and the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.ground import Ground
from bevkd_deploy.data.synthetic.portable import cos_sin, dot, exp, extent, invert_rigid, length, rotate, transform
from bevkd_deploy.data.synthetic.profiles import Profile
from bevkd_deploy.data.synthetic.world import Snapshot

Array = NDArray[np.float64]
Index = NDArray[np.int64]

BEAM_ELEVATIONS_RAD = np.radians(np.linspace(-30.67, 10.67, 32))
#: Range noise on the ground against that on objects: flat returns are averaged over a larger footprint.
GROUND_NOISE = 0.4
#: What is lost in addition of dark surfaces at the end of the range.
DARK_LOSS = 0.15
#: No return from closer than this.
BLIND_M = 1.0
GROUND = -1

#: Share of a column, and radians of elevation, by which a part's window is widened.
_WINDOW = 1e-6


@dataclass(frozen=True)
class Scan:
    """One LiDAR turn.

    Attributes:
        points: x, y, z, intensity (0..255), ring (0 lowest), LiDAR frame, [N, 5] float32.
        owner: row of the snapshot's thing each point lies on, GROUND for the ground, [N].
        seen: returns on each thing, [T].
        possible: rays that would hit each thing if nothing else stood in the way, [T].
    """

    points: NDArray[np.float32]
    owner: Index
    seen: Index
    possible: Index


class Lidar:
    """The ray table of one profile on one vehicle."""

    def __init__(self, profile: Profile, lidar2ego: Array) -> None:
        self._range_m = profile.lidar_range_m
        self._columns = profile.azimuth_steps
        self._difficulty = profile.difficulty
        azimuth = (np.arange(self._columns) + 0.5) * (2 * np.pi / self._columns) - np.pi
        (cos_e, sin_e), (cos_a, sin_a) = cos_sin(BEAM_ELEVATIONS_RAD), cos_sin(azimuth[:, None])  # [columns, beams]
        parts = (cos_e * cos_a, cos_e * sin_a, np.broadcast_to(sin_e, (len(azimuth), len(sin_e))))
        self._directions = np.stack([part.reshape(-1) for part in parts])  # LiDAR frame, [3, rays]
        self._ring = np.tile(np.arange(len(BEAM_ELEVATIONS_RAD)), self._columns)
        self._origin = lidar2ego[:3, 3]
        self._ego2lidar = invert_rigid(lidar2ego)
        self._rays = np.ascontiguousarray(rotate(lidar2ego[:3, :3], self._directions.T).T)  # ego frame, [3, rays]
        self._ground_m = self._ground_distance()

    def scan(
        self, snapshot: Snapshot, ground: Ground, ego_pose: Array, rng: np.random.Generator, *, possible: bool = True
    ) -> Scan:
        """Sense the snapshot.

        Args:
            snapshot: the world around the vehicle.
            ground: for the ground's reflectivity.
            ego_pose: x, y, yaw in the map frame.
            rng: noise and drop-out.
            possible: False leaves `Scan.possible` at zero, which only annotations need.
        """
        pairs = self._candidates(snapshot)
        distance, incidence = _intersect(snapshot.part_planes, self._origin, self._rays, pairs)
        hit = np.flatnonzero(np.isfinite(distance))
        ray, distance, incidence = pairs.ray[hit], distance[hit], incidence[hit]
        part = np.repeat(pairs.parts, pairs.counts)[hit]
        owner = snapshot.part_owner[part]
        things, rays = len(snapshot.things), len(self._ring)
        reached = np.zeros(things, dtype=np.int64)
        if possible:
            hits = np.sort(owner * rays + ray)  # a ray may hit several parts of one thing
            fresh = np.concatenate([hits[:1] >= 0, hits[1:] != hits[:-1]])
            reached = np.bincount(hits[fresh] // rays, minlength=things)

        nearest = self._ground_m.copy()
        np.minimum.at(nearest, ray, distance)
        first = np.flatnonzero(distance == nearest[ray])
        ray_owner = np.full(rays, GROUND)
        ray_owner[ray[first]] = owner[first]
        shine = np.zeros(rays)
        shine[ray[first]] = snapshot.part_reflectivity[part[first]] * (0.35 + 0.65 * incidence[first])
        near = np.flatnonzero((nearest < self._range_m) & (nearest > BLIND_M))
        on_ground = near[ray_owner[near] == GROUND]
        places = [self._origin[axis] + self._rays[axis, on_ground] * nearest[on_ground] for axis in (0, 1)]
        shine[on_ground] = ground.reflectivity(np.stack(places, axis=-1), ego_pose)
        return self._returns(near, nearest[near], ray_owner[near], shine[near], (reached, rng))

    def _returns(
        self, ray: Index, distance: Array, owner: Index, shine: Array, rest: tuple[Index, np.random.Generator]
    ) -> Scan:
        """Noise and drop-out."""
        possible, rng = rest
        fade = distance / self._range_m
        near_loss, far_loss = self._difficulty.lidar_loss
        lost = near_loss + far_loss * (fade * fade) + DARK_LOSS * fade * (shine < 0.08)
        kept = np.flatnonzero(rng.random(len(ray)) >= lost)
        ray, distance, owner, shine, fade = ray[kept], distance[kept], owner[kept], shine[kept], fade[kept]
        noise = self._difficulty.lidar_noise_m * np.where(owner == GROUND, GROUND_NOISE, 1.0)
        distance = distance + noise * rng.standard_normal(len(ray))
        intensity = 110.0 * shine * (1.1 - 0.5 * fade) * exp(0.15 * rng.standard_normal(len(ray)))
        points = np.empty((len(ray), 5), dtype=np.float32)
        for axis in range(3):
            points[:, axis] = self._directions[axis][ray] * distance
        points[:, 3] = np.clip(np.round(intensity), 0, 255)
        points[:, 4] = self._ring[ray]
        seen = np.bincount(owner[owner != GROUND], minlength=len(possible))
        return Scan(points, owner, seen, possible)

    def _candidates(self, snapshot: Snapshot) -> Pairs:
        """Pairs (part, ray) where the ray lies in the part's angular window.

        The window may differ in the last bit between machines, so it is a little wider than the part: whether a ray at
        its edge hits is decided by the exact intersection.
        """
        planes = snapshot.part_plane_counts
        parts = np.argsort(-planes, kind="stable")
        points = transform(self._ego2lidar, snapshot.part_points[parts])
        least, most = extent(points)
        center = (least[:, :2] + most[:, :2]) / 2
        middle = np.arctan2(center[:, 1], center[:, 0])
        spread = np.arctan2(points[..., 1], points[..., 0]) - middle[:, None]
        spread = (spread + np.pi) % (2 * np.pi) - np.pi
        step = 2 * np.pi / self._columns
        left, right = extent(spread)
        low = np.ceil((middle + left + np.pi) / step - 0.5 - _WINDOW).astype(np.int64)
        high = np.floor((middle + right + np.pi) / step - 0.5 + _WINDOW).astype(np.int64)
        columns = np.minimum(np.maximum(high - low + 1, 0), self._columns)

        distance = length(center[:, 0], center[:, 1])
        _, radius = extent(length(points[..., 0] - center[:, :1], points[..., 1] - center[:, 1:]))
        near, far = np.maximum(distance - radius, 0.05), distance + radius
        bottom, top = least[:, 2], most[:, 2]
        lowest = np.arctan2(bottom, np.where(bottom < 0, near, far)) - _WINDOW
        highest = np.arctan2(top, np.where(top > 0, near, far)) + _WINDOW
        first = np.searchsorted(BEAM_ELEVATIONS_RAD, lowest)
        beams = np.maximum(np.searchsorted(BEAM_ELEVATIONS_RAD, highest) - first, 0)
        beams[near > self._range_m] = 0

        counts = columns * beams
        row = np.repeat(np.arange(len(counts)), counts)
        inner = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        turn = inner // np.maximum(beams, 1)[row]
        column = (low[row] + turn) % self._columns
        beam = (first[row] + inner) - turn * beams[row]
        return Pairs(parts, counts, planes[parts], column * len(BEAM_ELEVATIONS_RAD) + beam)

    def _ground_distance(self) -> Array:
        slope = self._rays[2]
        with np.errstate(divide="ignore"):
            distance = -self._origin[2] / slope
        result: Array = np.where(slope < -1e-4, distance, np.inf)
        return result


@dataclass(frozen=True)
class Pairs:
    """Which rays may hit which parts: `counts[i]` of `ray`, in order, belong to `parts[i]`.

    Attributes:
        parts: rows of the snapshot's parts, those with most planes first, [P].
        counts: rays of each, [P].
        planes: planes that bound each, [P].
        ray: [counts.sum()].
    """

    parts: Index
    counts: Index
    planes: Index
    ray: Index


def _intersect(planes: Array, origin: Array, rays: Array, pairs: Pairs) -> tuple[Array, Array]:
    """Distance along each ray into its convex part and the cosine of incidence.

    Args:
        planes: normal and offset (inside: n.p <= d) of every part, [P, K, 4].
        origin: where all rays begin, same frame, [3].
        rays: their directions, [3, R].
        pairs: what to intersect with what.

    Returns:
        Distance in lengths of the directions, inf where the ray misses, and the cosine times that length; [N] each.
    """
    total = len(pairs.ray)
    x, y, z = (axis[pairs.ray] for axis in rays)
    enter, leave, incidence = np.full(total, -np.inf), np.full(total, np.inf), np.zeros(total)
    for index in range(int(pairs.planes.max(initial=0))):
        rows = int(np.count_nonzero(pairs.planes > index))  # a prefix: parts with most planes come first
        chosen = planes[pairs.parts[:rows], index]
        offset = chosen[:, 3] - dot(chosen[:, :3], origin)
        counts = pairs.counts[:rows]
        nx, ny, nz, gap = (np.repeat(values, counts) for values in (*chosen[:, :3].T, offset))
        part = slice(0, len(gap))
        slope = nx * x[part] + ny * y[part] + nz * z[part]
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = gap / slope
        entering = slope < 0
        later = entering & (distance > enter[part])
        np.copyto(enter[part], distance, where=later)
        np.copyto(incidence[part], -slope, where=later)
        np.copyto(leave[part], distance, where=~entering & (distance < leave[part]))
        outside = (slope == 0) & (gap < 0)
        if outside.any():
            leave[part][outside] = -np.inf
    hit = (enter < leave) & (enter > 0)
    return np.where(hit, enter, np.inf), incidence
