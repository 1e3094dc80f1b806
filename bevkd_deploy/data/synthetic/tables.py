"""The nuScenes tables: fixed ones, those of one scene, and their merge."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CAMERA_NAMES, LIDAR_NAME
from bevkd_deploy.data.synthetic.portable import cos_sin_of
from bevkd_deploy.data.synthetic.rig import Rig

Array = NDArray[np.float64]
Record = dict[str, Any]
Tables = dict[str, list[Record]]

VERSION = "v1.0-trainval"
TABLE_NAMES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip
CATEGORIES = (
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.wheelchair", "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.construction_worker",
    "animal", "vehicle.car", "vehicle.motorcycle", "vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid",
    "vehicle.truck", "vehicle.construction", "vehicle.emergency.ambulance", "vehicle.emergency.police",
    "vehicle.trailer", "movable_object.barrier", "movable_object.trafficcone", "movable_object.pushable_pullable",
    "movable_object.debris", "static_object.bicycle_rack",
)  # fmt: skip
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
VISIBILITIES = ("v0-40", "v40-60", "v60-80", "v80-100")
MAP_FILE = "maps/synthetic.png"
VEHICLE = "synth"


def token(*parts: object) -> str:
    """32 hex digits that depend on nothing but the arguments."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def visibility_token(seen: int, possible: int) -> str:
    """nuScenes visibility level "1".."4" from the share of an object's rays that reach it."""
    share = seen / possible if possible else 0.0
    return str(1 + sum(share > limit for limit in (0.4, 0.6, 0.8)))


def fixed_tables(log_tokens: list[str]) -> Tables:
    """Tables that are the same for every synthetic dataset, and the map that all logs share."""
    return {
        "category": [{"token": token("category", name), "name": name, "description": ""} for name in CATEGORIES],
        "attribute": [{"token": token("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": str(level), "level": name, "description": f"visibility of whole object is {name[1:]} percent"}
            for level, name in enumerate(VISIBILITIES, start=1)
        ],
        "sensor": [
            {"token": token("sensor", name), "channel": name, "modality": "lidar" if name == LIDAR_NAME else "camera"}
            for name in (*CAMERA_NAMES, LIDAR_NAME)
        ],
        "map": [
            {"category": "semantic_prior", "token": token("map"), "filename": MAP_FILE, "log_tokens": log_tokens}
        ],
    }  # fmt: skip


@dataclass(frozen=True)
class BoxRecord:
    """One annotated object at one keyframe, global frame; `key` is the same over time."""

    key: int
    category: str
    attribute: str
    center: Array
    size: tuple[float, float, float]
    yaw_rad: float
    num_points: int
    visibility: str


class SceneTables:
    """Collects the records of one scene in time order."""

    def __init__(self, namespace: str, name: str, log_name: str, description: str) -> None:
        self._space = namespace
        self._name, self._log_name, self._description = name, log_name, description
        self.log_token = token(namespace, "log")
        self._tables: Tables = defaultdict(list)
        self._last_data: dict[str, Record] = {}
        self._tracks: dict[int, list[Record]] = defaultdict(list)

    def add_rig(self, rig: Rig) -> None:
        """The calibrated sensors of the scene's vehicle."""
        for camera in rig.cameras:
            self._add_sensor(camera.name, camera.cam2ego, camera.cam2img.tolist())
        self._add_sensor(LIDAR_NAME, rig.lidar2ego, [])

    def add_sample(self, timestamp_us: int) -> str:
        """A keyframe; returns its token."""
        samples = self._tables["sample"]
        record = {
            "token": token(self._space, "sample", len(samples)),
            "timestamp": timestamp_us,
            "prev": samples[-1]["token"] if samples else "",
            "next": "",
            "scene_token": token(self._space, "scene"),
        }
        if samples:
            samples[-1]["next"] = record["token"]
        samples.append(record)
        return str(record["token"])

    def add_data(self, channel: str, filename: str, timestamp_us: int, ego2global: Array, *, sample_token: str,
                 is_key_frame: bool, image_hw_px: tuple[int, int] = (0, 0)) -> None:  # fmt: skip
        """One sensor file with its own ego pose."""
        data = token(self._space, "data", channel, timestamp_us)
        pose = token(self._space, "pose", channel, timestamp_us)
        self._tables["ego_pose"].append({"token": pose, "timestamp": timestamp_us, **_rigid(ego2global)})
        last = self._last_data.get(channel)
        record = {
            "token": data,
            "sample_token": sample_token,
            "ego_pose_token": pose,
            "calibrated_sensor_token": token(self._space, "calibrated", channel),
            "timestamp": timestamp_us,
            "fileformat": "pcd" if channel == LIDAR_NAME else "jpg",
            "is_key_frame": is_key_frame,
            "height": image_hw_px[0],
            "width": image_hw_px[1],
            "filename": filename,
            "prev": last["token"] if last else "",
            "next": "",
        }
        if last:
            last["next"] = data
        self._last_data[channel] = record
        self._tables["sample_data"].append(record)

    def add_box(self, sample_token: str, box: BoxRecord) -> None:
        """One annotation."""
        track = self._tracks[box.key]
        length, width, height = box.size
        record = {
            "token": token(self._space, "annotation", sample_token, box.key),
            "sample_token": sample_token,
            "instance_token": token(self._space, "instance", box.key),
            "visibility_token": box.visibility,
            "attribute_tokens": [token("attribute", box.attribute)] if box.attribute else [],
            "translation": box.center.tolist(),
            "size": [width, length, height],
            "rotation": _yaw_quaternion(box.yaw_rad),
            "prev": track[-1]["token"] if track else "",
            "next": "",
            "num_lidar_pts": box.num_points,
            "num_radar_pts": 0,
        }
        if track:
            track[-1]["next"] = record["token"]
        else:
            category = token("category", box.category)
            self._tables["instance"].append({"token": record["instance_token"], "category_token": category})
        track.append(record)
        self._tables["sample_annotation"].append(record)

    def finish(self) -> Tables:
        """All tables of the scene."""
        for instance, track in zip(self._tables["instance"], self._tracks.values(), strict=True):
            instance["nbr_annotations"] = len(track)
            instance["first_annotation_token"] = track[0]["token"]
            instance["last_annotation_token"] = track[-1]["token"]
        samples = self._tables["sample"]
        self._tables["scene"].append(
            {
                "token": token(self._space, "scene"),
                "log_token": self.log_token,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"],
                "last_sample_token": samples[-1]["token"],
                "name": self._name,
                "description": self._description,
            }
        )
        self._tables["log"].append(
            {
                "token": self.log_token,
                "logfile": self._log_name,
                "vehicle": VEHICLE,
                "date_captured": "2024-01-01",
                "location": "synthetic-street",
            }
        )
        return dict(self._tables)

    def _add_sensor(self, channel: str, sensor2ego: Array, intrinsic: list[Any]) -> None:
        self._tables["calibrated_sensor"].append(
            {
                "token": token(self._space, "calibrated", channel),
                "sensor_token": token("sensor", channel),
                **_rigid(sensor2ego),
                "camera_intrinsic": intrinsic,
            }
        )


def _yaw_quaternion(yaw_rad: float) -> list[float]:
    cos, sin = cos_sin_of(yaw_rad / 2)
    return [cos, 0.0, 0.0, sin]


def _rigid(matrix: Array) -> Record:
    return {"translation": matrix[:3, 3].tolist(), "rotation": rotation_quaternion(matrix[:3, :3])}


def rotation_quaternion(rotation: Array) -> list[float]:
    """Quaternion (w, x, y, z) with w >= 0 of a rotation matrix [3, 3], the same bits on every machine.

    `geometry.frames.matrix_to_quaternion` is the better choice for measured matrices: it finds the nearest rotation.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    squares = (1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz)  # 4 q**2 each
    rows = (
        (squares[0], zy - yz, xz - zx, yx - xy),
        (zy - yz, squares[1], yx + xy, xz + zx),
        (xz - zx, yx + xy, squares[2], zy + yz),
        (yx - xy, xz + zx, zy + yz, squares[3]),
    )
    best = squares.index(max(squares))
    scale = 0.5 / math.sqrt(squares[best])
    quaternion = [value * scale for value in rows[best]]
    return quaternion if quaternion[0] >= 0 else [-value for value in quaternion]


def merge(parts: list[Tables]) -> Tables:
    """Tables of all scenes, in order."""
    merged: Tables = {name: [] for name in TABLE_NAMES}
    for part in parts:
        for name, records in part.items():
            merged[name].extend(records)
    return merged
