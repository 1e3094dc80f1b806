"""What stands and moves along one street: objects, their trajectories, buildings and trees."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.synthetic import street as roads
from bevkd_deploy.data.synthetic.objects import RIDER_HEIGHT_M, build_shape, sample_size
from bevkd_deploy.data.synthetic.portable import cos_sin, length
from bevkd_deploy.data.synthetic.profiles import KEYFRAME_RATE_HZ, Profile
from bevkd_deploy.data.synthetic.scenery import building, furniture, tree
from bevkd_deploy.data.synthetic.shapes import Shape
from bevkd_deploy.data.synthetic.street import Street

Array = NDArray[np.float64]

#: The ego vehicle occupies this much around its rear axle: centre ahead of it, half length, half width.
EGO_CENTER_M, EGO_HALF_M = 1.4, (3.0, 1.2)
#: Scenery is built this far beyond the ego path.
SCENERY_RANGE_M = 75.0

_CLEARANCE_M = 0.15


@dataclass(frozen=True)
class Thing:
    """One object or piece of scenery.

    Attributes:
        category: nuScenes category, "" for scenery (not annotated).
        class_name: detection class, "" for scenery.
        size: length, width, height of its box, metres.
        shape: its geometry.
        poses: x, y, yaw in the map frame at each time, [T, 3].
        attribute: nuScenes attribute name or "".
    """

    category: str
    class_name: str
    size: tuple[float, float, float]
    shape: Shape
    poses: Array
    attribute: str


@dataclass(frozen=True)
class Layout:
    """One scene: the street, the ego trajectory [T, 3] (x, y, yaw, map frame) and everything else."""

    street: Street
    times_s: Array
    ego: Array
    ego_s: Array
    things: list[Thing]


@dataclass(frozen=True)
class _Role:
    """How an object behaves: its travel along the street at each time [T] and its speed across it."""

    state: str = ""
    travel_m: Array | None = None
    lateral_mps: float = 0.0
    worker: bool = False


@dataclass
class _Crowd:
    """Footprints already taken, to refuse what would overlap at any keyframe."""

    times: int
    count: int = 0
    _poses: Array = field(init=False)
    _halves: Array = field(init=False)

    def __post_init__(self) -> None:
        self._poses, self._halves = np.empty((64, self.times, 3)), np.empty((64, 2))

    def claim(self, poses: Array, half: tuple[float, float]) -> bool:
        """Take the footprint along `poses` [T, 3] unless it overlaps another; whether it was taken."""
        if self._overlaps(poses, half):
            return False
        if self.count == len(self._halves):
            self._poses = np.concatenate([self._poses, np.empty_like(self._poses)])
            self._halves = np.concatenate([self._halves, np.empty_like(self._halves)])
        self._poses[self.count], self._halves[self.count] = poses, half
        self.count += 1
        return True

    def _overlaps(self, poses: Array, half: tuple[float, float]) -> bool:
        others, halves = self._poses[: self.count], self._halves[: self.count]
        radius = math.sqrt(half[0] * half[0] + half[1] * half[1])
        reach = radius + length(halves[:, 0], halves[:, 1]) + _CLEARANCE_M
        x, y = others[..., 0] - poses[:, 0], others[..., 1] - poses[:, 1]
        who, when = np.nonzero(x * x + y * y < (reach * reach)[:, None])
        if not len(who):
            return False
        grown = np.array(half) + _CLEARANCE_M
        return bool(
            overlapping(poses[when], np.broadcast_to(grown, (len(who), 2)), others[who, when], halves[who]).any()
        )


def overlapping(a: Array, half_a: Array, b: Array, half_b: Array) -> NDArray[np.bool_]:
    """Whether rectangles overlap, pair by pair: poses [N, 3] (x, y, yaw) and half sizes [N, 2] (length, width)."""
    x, y = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    (cos_a, sin_a), (cos_b, sin_b) = cos_sin(a[:, 2]), cos_sin(b[:, 2])
    along, across = np.abs(cos_a * cos_b + sin_a * sin_b), np.abs(sin_a * cos_b - cos_a * sin_b)
    result = np.ones(len(a), dtype=bool)
    for cos, sin, own, other in ((cos_a, sin_a, half_a, half_b), (cos_b, sin_b, half_b, half_a)):
        result &= np.abs(x * cos + y * sin) < own[:, 0] + other[:, 0] * along + other[:, 1] * across
        result &= np.abs(y * cos - x * sin) < own[:, 1] + other[:, 0] * across + other[:, 1] * along
    return result


def make_layout(profile: Profile, rng: np.random.Generator) -> Layout:
    """Draw one scene."""
    per_keyframe = 1 + profile.sweeps_between
    count = (profile.keyframes - 1) * per_keyframe + 1
    times = np.arange(count) / (KEYFRAME_RATE_HZ * per_keyframe)
    speed, wave = rng.uniform(3.0, 7.5), rng.uniform(0.3, 0.6)
    ego_s = speed * times + rng.uniform(0, 1.0) * (1 - cos_sin(wave * times)[0]) / wave
    street = roads.make_street((-320.0, float(ego_s[-1]) + 320.0), rng)
    ego = street.pose(ego_s, np.full(count, roads.EGO_LANE_M))
    filler = _Filler(profile, street, times, ego_s, rng)
    center = ego.copy()
    cos, sin = cos_sin(ego[:, 2])
    center[:, 0] += EGO_CENTER_M * cos
    center[:, 1] += EGO_CENTER_M * sin
    filler.crowd.claim(center[:: filler.stride], EGO_HALF_M)
    filler.fill()
    return Layout(street, times, ego, ego_s, filler.things)


class _Filler:
    """Walks along the street and places things where there is room."""

    def __init__(self, profile: Profile, street: Street, times: Array, ego_s: Array, rng: np.random.Generator) -> None:
        self.street, self.times, self.ego_s, self.rng = street, times, ego_s, rng
        self.stride = 1 + profile.sweeps_between
        self.range_m = profile.reach_m
        self.difficulty = profile.difficulty
        self.crowd = _Crowd(len(times[:: self.stride]))
        self.things: list[Thing] = []
        self.ends = (float(ego_s[0]) - self.range_m, float(ego_s[-1]) + self.range_m)

    def fill(self) -> None:
        """Place everything; what comes first gets the room."""
        for side in (-1, 1):
            self._lots_and_buildings(side)
            self._work_zones(side)
        for lane in roads.LANES_M:
            self._lane(lane)
        for side in (-1, 1):
            self._parking(side)
            self._furniture(side)
            self._sidewalk(side)
            self._cross_street(side)

    def _deck(self, counts: dict[str, int]) -> Iterator[str]:
        """Names in random order, each as often as its count, again and again: rare ones never stay away for long."""
        cards = [name for name, count in counts.items() for _ in range(count)]
        while True:
            for index in self.rng.permutation(len(cards)):
                yield cards[index]

    def _put(self, class_name: str, s: float, d: float, yaw: float, role: _Role) -> bool:
        """Place one object at (s, d) heading `yaw` off the street, if there is room."""
        rng = self.rng
        rider = class_name in ("bicycle", "motorcycle") and role.state in ("moving", "stopped")
        length, width, height = sample_size(class_name, rng)
        child = class_name == "pedestrian" and not role.worker and rng.random() < 0.08
        if child:
            length, width, height = length * 0.75, width * 0.75, height * 0.7
        size = (length, width, height + RIDER_HEIGHT_M * rider)
        along = np.full(len(self.times), s) + (0.0 if role.travel_m is None else role.travel_m)
        poses = self.street.pose(along, d + role.lateral_mps * self.times)
        poses[:, 2] += yaw
        if not self.crowd.claim(poses[:: self.stride], (length / 2, width / 2)):
            return False
        shape = build_shape(class_name, size, rng, rider=rider, worker=role.worker)
        category = _category(class_name, worker=role.worker, child=child)
        self.things.append(Thing(category, class_name, size, shape, poses, _attribute(class_name, role.state)))
        return True

    def _lane(self, lane: float) -> None:
        rng = self.rng
        direction = 1 if lane < 0 else -1
        if lane == roads.EGO_LANE_M:
            travel = self.ego_s - self.ego_s[0]
        else:
            pace = 0.0 if rng.random() < 0.15 else rng.uniform(2.0, 9.0)
            travel = direction * pace * self.times
        moving = "moving" if abs(travel[-1]) > 1 else "stopped"
        window = self.ego_s - travel
        s, end = float(window.min()) - self.range_m, float(window.max()) + self.range_m
        deck = self._deck(
            {"car": 6, "truck": 2, "bus": 2, "trailer": 1, "motorcycle": 3, "bicycle": 2, "construction_vehicle": 1}
        )
        role = _Role(moving, travel)
        heading = 0.0 if direction > 0 else np.pi
        while s < end:
            name = next(deck)
            jitter = rng.normal(0, 0.02)
            offset = rng.normal(0, 0.15)
            if name == "trailer":  # pulled by a truck ahead of it
                self._put("truck", s + direction * 9.6, lane + offset, heading + jitter, role)
            self._put(name, s, lane + offset, heading + jitter, role)
            s += rng.uniform(*self.difficulty.traffic_gap_m) + (8.0 if name == "trailer" else 0.0)

    def _parking(self, side: int) -> None:
        rng = self.rng
        deck = self._deck(
            {"car": 6, "truck": 1, "bus": 1, "trailer": 3, "construction_vehicle": 1, "motorcycle": 3, "bicycle": 2}
        )
        s = self.ends[0]
        while s < self.ends[1]:
            name = next(deck)
            long = {"bus": 12.0, "trailer": 11.5, "truck": 8.5, "construction_vehicle": 7.5, "car": 5.6}.get(name, 2.6)
            s += long / 2
            if not self.street.in_crossing(s, long / 2 + 1.0):
                small = name in ("motorcycle", "bicycle")
                yaw = rng.normal(0, 0.03) + (np.pi if (side > 0) != (rng.random() < 0.12) else 0.0)
                yaw += rng.uniform(-1.3, 1.3) if small else 0.0
                self._put(name, s, side * (roads.PARKING_M + rng.normal(0, 0.1)), yaw, _Role("parked"))
            s += long / 2 + rng.uniform(*self.difficulty.parked_gap_m)

    def _work_zones(self, side: int) -> None:
        """Barrier rows, cones, construction vehicles and workers where cars would park."""
        rng = self.rng
        s = self.ends[0] + rng.uniform(0, 40.0)
        while s < self.ends[1]:
            length = rng.uniform(14.0, 20.0)
            if self.street.in_crossing(s + length / 2, length / 2 + 1):
                s += 8.0
                continue
            edge = side * 7.15
            vehicle = s + length / 2 + rng.uniform(-2, 2)
            yaw = rng.uniform(-0.15, 0.15) + np.pi * int(rng.integers(2))
            self._put("construction_vehicle", vehicle, side * 9.1, yaw, _Role("parked"))
            for position in np.arange(s + 3.0, s + length - 2.0, rng.uniform(2.75, 3.4)):
                turn = np.pi * int(rng.integers(2)) + rng.normal(0, 0.04)
                self._put("barrier", float(position), edge + rng.normal(0, 0.08), np.pi / 2 + turn, _Role())
            for fraction in np.linspace(0.0, 1.0, 4):
                for end in (s + 2.2 * fraction, s + length - 2.2 * fraction):
                    if rng.random() < 0.75:
                        out = side * (9.9 - 2.6 * fraction)
                        self._put("traffic_cone", end + rng.normal(0, 0.15), out, rng.uniform(-np.pi, np.pi), _Role())
            for _ in range(int(rng.integers(1, 3))):
                place = s + rng.uniform(2, length - 2)
                self._put(
                    "pedestrian",
                    place,
                    side * rng.uniform(7.7, 10.2),
                    rng.uniform(-np.pi, np.pi),
                    _Role("standing", worker=True),
                )
            s += length + rng.uniform(45.0, 75.0)

    def _furniture(self, side: int) -> None:
        """What stands about with the size of a cone, a barrier, a pedestrian or a car, and is none."""
        rng = self.rng
        deck = self._deck({"bollard": 2, "planter": 2, "bush": 3, "cabinet": 2, "skip": 1})
        s = self.ends[0]
        while s < self.ends[1]:
            s += rng.uniform(*self.difficulty.furniture_gap_m)
            kind = next(deck)
            d = rng.uniform(roads.ROAD_EDGE_M + 0.5, roads.SIDEWALK_EDGE_M - 0.5)
            if kind == "skip":
                d = roads.PARKING_M
            along_street = kind in ("planter", "cabinet")
            for k in range(int(rng.integers(2, 5)) if kind == "bollard" else 1):
                shape, size = furniture(kind, rng)
                yaw = rng.normal(0, 0.04) + (np.pi / 2 if along_street else 0.0)
                self._scenery(shape, size, s + 1.5 * k, side * d, yaw)

    def _sidewalk(self, side: int) -> None:
        rng = self.rng
        s = self.ends[0] - 10.0
        while s < self.ends[1] + 10.0:
            s += rng.uniform(*self.difficulty.walker_gap_m)
            d = side * rng.uniform(roads.ROAD_EDGE_M + 0.8, roads.SIDEWALK_EDGE_M - 0.8)
            draw = rng.random()
            if draw < 0.68:
                self._walker(s, d)
            elif draw < 0.78:
                self._put("bicycle", s, d, rng.normal(0, 0.2), _Role("parked"))
            elif draw < 0.84:
                self._put("bicycle", s, d, 0.0, _Role("moving", rng.uniform(2, 4) * self.times))
            elif draw < 0.90:
                self._put("motorcycle", s, d, rng.uniform(-np.pi, np.pi), _Role("parked"))
            else:
                for k in range(int(rng.integers(1, 4))):
                    self._put("traffic_cone", s + 1.4 * k, d + rng.normal(0, 0.2), rng.uniform(-np.pi, np.pi), _Role())

    def _walker(self, s: float, d: float) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            self._put("pedestrian", s, d, rng.uniform(-np.pi, np.pi), _Role("standing"))
            return
        pace = rng.uniform(0.7, 1.7) * rng.choice([-1, 1])
        if rng.random() < 0.12:  # crosses the street
            role = _Role("moving", lateral_mps=-np.sign(d) * abs(pace))
            self._put("pedestrian", s, d, -np.sign(d) * np.pi / 2, role)
            return
        yaw = 0.0 if pace > 0 else np.pi
        self._put("pedestrian", s, d, yaw + rng.normal(0, 0.05), _Role("moving", pace * self.times))

    def _cross_street(self, side: int) -> None:
        """Vehicles waiting or parked on the cross-streets, pointing towards or away from the street."""
        rng = self.rng
        deck = self._deck({"car": 4, "truck": 1, "bus": 1, "motorcycle": 1, "bicycle": 1})
        for center in self.street.crossings_s_m:
            if not self.ends[0] < center < self.ends[1]:
                continue
            for lane in (-2.2, 2.2):
                d = rng.uniform(14.0, 18.0)
                while d < 40:
                    away = (lane > 0) == (side > 0)
                    yaw = (np.pi / 2 if (side > 0) == away else -np.pi / 2) + rng.normal(0, 0.03)
                    self._put(next(deck), center + lane, side * d, yaw, _Role("stopped"))
                    d += rng.uniform(8, 22)

    def _lots_and_buildings(self, side: int) -> None:
        rng = self.rng
        s, end = float(self.ego_s[0]) - SCENERY_RANGE_M, float(self.ego_s[-1]) + SCENERY_RANGE_M
        deck = self._deck({"trailer": 2, "bus": 1, "construction_vehicle": 2, "truck": 1, "car": 1})
        while s < end:
            length = rng.uniform(8.0, 13.0)
            middle = s + length / 2
            if self.street.in_crossing(middle, length / 2):
                s += 2.0
                continue
            if rng.random() < 0.3:
                self._lot(middle, side, deck)
            else:
                depth, front = rng.uniform(7, 10), roads.BUILDING_M + rng.uniform(0, 2.5)
                size = (length, depth, rng.uniform(5, 16))
                self._scenery(building(size, rng), size, middle, side * (front + depth / 2))
            if rng.random() < 0.4:
                spot = s + rng.uniform(0, length)
                self._scenery(tree(rng), (1.9, 1.9, 5.0), spot, side * (roads.SIDEWALK_EDGE_M - 0.2))
            s += length + rng.uniform(0.5, 3.0)

    def _lot(self, middle: float, side: int, deck: Iterator[str]) -> None:
        rng = self.rng
        for _ in range(2):
            yaw = rng.uniform(-np.pi, np.pi)
            d = side * rng.uniform(19.0, 30.0)
            self._put(next(deck), middle + rng.uniform(-3, 3), d, yaw, _Role("parked"))
        if rng.random() < 0.5:
            for k in range(-1, 2):
                self._put("barrier", middle + 2.8 * k, side * 16.0, np.pi / 2 + rng.normal(0, 0.04), _Role())

    def _scenery(self, shape: Shape, size: tuple[float, float, float], s: float, d: float, yaw: float = 0.0) -> None:
        poses = self.street.pose(np.full(len(self.times), s), np.full(len(self.times), d))
        poses[:, 2] += yaw
        if self.crowd.claim(poses[:: self.stride], (size[0] / 2, size[1] / 2)):
            self.things.append(Thing("", "", size, shape, poses, ""))


def _category(class_name: str, *, worker: bool, child: bool) -> str:
    if class_name == "pedestrian":
        return f"human.pedestrian.{'construction_worker' if worker else 'child' if child else 'adult'}"
    return {
        "car": "vehicle.car",
        "truck": "vehicle.truck",
        "trailer": "vehicle.trailer",
        "bus": "vehicle.bus.rigid",
        "construction_vehicle": "vehicle.construction",
        "bicycle": "vehicle.bicycle",
        "motorcycle": "vehicle.motorcycle",
        "traffic_cone": "movable_object.trafficcone",
        "barrier": "movable_object.barrier",
    }[class_name]


def _attribute(class_name: str, state: str) -> str:
    if class_name in ("traffic_cone", "barrier"):
        return ""
    if class_name == "pedestrian":
        return f"pedestrian.{state}"
    if class_name in ("bicycle", "motorcycle"):
        return "cycle.without_rider" if state == "parked" else "cycle.with_rider"
    return f"vehicle.{state}"
