"""A 32-beam spinning LiDAR: exact nearest-hit ray casting against the convex parts and the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic.ground import Ground
from bevkd_deploy.data.synthetic.profiles import Profile
from bevkd_deploy.data.synthetic.world import Snapshot
from bevkd_deploy.geometry.frames import invert, transform_points

Array = NDArray[np.float64]
Index = NDArray[np.int64]

BEAM_ELEVATIONS_RAD = np.radians(np.linspace(-30.67, 10.67, 32))
RANGE_NOISE_M = 0.015
GROUND_NOISE_M = 0.006
#: No return from closer than this.
BLIND_M = 1.0
GROUND = -1


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
    """The ray table of one profile."""

    def __init__(self, profile: Profile) -> None:
        self._range_m = profile.lidar_range_m
        self._columns = profile.azimuth_steps
        self._azimuth = (np.arange(self._columns) + 0.5) * (2 * np.pi / self._columns) - np.pi
        elevation, azimuth = np.meshgrid(BEAM_ELEVATIONS_RAD, self._azimuth)  # [columns, beams]
        self._directions = np.stack(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
        ).reshape(-1, 3)
        self._ring = np.tile(np.arange(len(BEAM_ELEVATIONS_RAD)), self._columns)

    def scan(
        self, snapshot: Snapshot, ground: Ground, lidar2ego: Array, ego_pose: Array, rng: np.random.Generator
    ) -> Scan:
        """Sense the snapshot; `ego_pose` is x, y, yaw in the map frame (for the ground's reflectivity)."""
        ego2lidar = invert(lidar2ego)
        part, ray = self._candidates(snapshot.part_points, ego2lidar)
        planes = _planes_in(snapshot.part_planes, ego2lidar)
        distance, incidence = _intersect(planes, self._directions, part, ray)
        hit = np.isfinite(distance)
        part, ray, distance, incidence = part[hit], ray[hit], distance[hit], incidence[hit]
        owner = snapshot.part_owner[part]
        things = len(snapshot.things)
        rays = len(self._directions)
        possible = np.bincount(np.unique(owner * rays + ray) // rays, minlength=things)

        nearest = self._ground_distance(lidar2ego)
        on_ground = nearest.copy()
        np.minimum.at(nearest, ray, distance)
        first = np.flatnonzero(distance == nearest[ray])
        ray_owner = np.full(len(nearest), GROUND)
        ray_owner[ray[first]] = owner[first]
        shine = np.zeros(len(nearest))
        shine[ray[first]] = snapshot.part_reflectivity[part[first]] * (0.35 + 0.65 * incidence[first])
        from_ground = (nearest == on_ground) & np.isfinite(nearest)
        shine[from_ground] = self._ground_shine(from_ground, nearest, ground, lidar2ego, ego_pose)
        return self._returns(nearest, ray_owner, shine, things, possible, rng)

    def _returns(
        self, nearest: Array, owner: Index, shine: Array, things: int, possible: Index, rng: np.random.Generator
    ) -> Scan:
        """Noise and drop-out."""
        fade = nearest / self._range_m
        noise = np.where(owner == GROUND, GROUND_NOISE_M, RANGE_NOISE_M) * rng.standard_normal(len(nearest))
        with np.errstate(invalid="ignore"):
            lost = 0.02 + 0.22 * fade**2 + 0.15 * fade * (shine < 0.08)
        survives = rng.random(len(nearest)) > np.nan_to_num(lost, nan=1.0)
        keep = np.flatnonzero((nearest < self._range_m) & (nearest > BLIND_M) & survives)
        distance = nearest[keep] + noise[keep]
        intensity = 110.0 * shine[keep] * (1.1 - 0.5 * fade[keep]) * np.exp(0.15 * rng.standard_normal(len(keep)))
        points = np.empty((len(keep), 5), dtype=np.float32)
        points[:, :3] = self._directions[keep] * distance[:, None]
        points[:, 3] = np.clip(np.round(intensity), 0, 255)
        points[:, 4] = self._ring[keep]
        kept_owner = owner[keep]
        seen = np.bincount(kept_owner[kept_owner != GROUND], minlength=things)
        return Scan(points, kept_owner, seen, possible)

    def _candidates(self, part_points: Array, ego2lidar: Array) -> tuple[Index, Index]:
        """Pairs (part, ray) where the ray lies in the part's angular window."""
        points = transform_points(ego2lidar, part_points.reshape(-1, 3)).reshape(part_points.shape)
        center = points[..., :2].mean(axis=1)
        middle = np.arctan2(center[:, 1], center[:, 0])
        spread = np.arctan2(points[..., 1], points[..., 0]) - middle[:, None]
        spread = (spread + np.pi) % (2 * np.pi) - np.pi
        step = 2 * np.pi / self._columns
        low = np.ceil((middle + spread.min(axis=1) + np.pi) / step - 0.5).astype(np.int64)
        high = np.floor((middle + spread.max(axis=1) + np.pi) / step - 0.5).astype(np.int64)
        columns = np.maximum(high - low + 1, 0)

        distance = np.hypot(center[:, 0], center[:, 1])
        radius = np.hypot(points[..., 0] - center[:, :1], points[..., 1] - center[:, 1:]).max(axis=1)
        near, far = np.maximum(distance - radius, 0.05), distance + radius
        bottom, top = points[..., 2].min(axis=1), points[..., 2].max(axis=1)
        lowest = np.arctan2(bottom, np.where(bottom < 0, near, far))
        highest = np.arctan2(top, np.where(top > 0, near, far))
        first = np.searchsorted(BEAM_ELEVATIONS_RAD, lowest)
        beams = np.maximum(np.searchsorted(BEAM_ELEVATIONS_RAD, highest) - first, 0)
        beams[near > self._range_m] = 0

        counts = columns * beams
        part = np.repeat(np.arange(len(counts)), counts)
        inner = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        column = (low[part] + inner // np.maximum(beams, 1)[part]) % self._columns
        beam = first[part] + inner % np.maximum(beams, 1)[part]
        return part, column * len(BEAM_ELEVATIONS_RAD) + beam

    def _ground_distance(self, lidar2ego: Array) -> Array:
        slope = self._directions @ lidar2ego[2, :3]
        with np.errstate(divide="ignore"):
            distance = -lidar2ego[2, 3] / slope
        result: Array = np.where(slope < -1e-4, distance, np.inf)
        return result

    def _ground_shine(
        self, chosen: NDArray[np.bool_], distance: Array, ground: Ground, lidar2ego: Array, ego_pose: Array
    ) -> Array:
        hits = transform_points(lidar2ego, self._directions[chosen] * distance[chosen, None])
        return ground.reflectivity(hits[:, :2], ego_pose)


def _planes_in(planes: Array, src2dst: Array) -> Array:
    """Planes (normal, offset; inside n.p <= d) [P, K, 4] in another frame."""
    normals = planes[..., :3] @ src2dst[:3, :3].T
    offsets = planes[..., 3] + normals @ src2dst[:3, 3]
    return np.concatenate([normals, offsets[..., None]], axis=-1)


def _intersect(planes: Array, directions: Array, part: Index, ray: Index) -> tuple[Array, Array]:
    """Distance from the origin along each ray into its convex part (inf: missed), and the cosine of incidence."""
    direction = directions[ray]
    enter, leave = np.full(len(part), -np.inf), np.full(len(part), np.inf)
    incidence = np.zeros(len(part))
    used = (planes[..., :3] != 0).any(axis=(0, 2))
    for index in np.flatnonzero(used):
        plane = planes[part, index]
        slope = np.einsum("nc,nc->n", plane[:, :3], direction)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = plane[:, 3] / slope
        inward = (slope < 0) & (distance > enter)
        enter[inward] = distance[inward]
        incidence[inward] = -slope[inward]
        leave = np.where((slope > 0) & (distance < leave), distance, leave)
        leave[(slope == 0) & (plane[:, 3] < 0)] = -np.inf
    hit = (enter < leave) & (enter > 0)
    return np.where(hit, enter, np.inf), incidence
