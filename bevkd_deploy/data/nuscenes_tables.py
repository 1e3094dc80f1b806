"""The nuScenes tables themselves (`v1.0-*/*.json`) as samples; no devkit needed.

Source of the velocity rule: nuscenes-devkit 1.2.0, NuScenes.box_velocity (central difference, at most 1.5 s).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import BIKE_RACK_CATEGORY, CATEGORY_TO_CLASS, CLASS_NAMES, LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.samples import GlobalBoxes, Sample, Sweep
from bevkd_deploy.geometry.boxes import transform_boxes
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.frames import invert, pose, quaternion_to_matrix

Row = dict[str, Any]
_MAX_VELOCITY_SPAN_S = 1.5
_TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation",
    "sample_data", "scene", "sensor",
)  # fmt: skip


class NuScenesTables:
    """All tables of one version, indexed by token."""

    def __init__(self, root: Path, version: str) -> None:
        self.root = root
        folder = root / version
        if not folder.is_dir():
            found = sorted(p.name for p in root.glob("v1.0-*"))
            reason = f"the folder holds {found or 'no v1.0-* tables'}" if root.is_dir() else "there is no such folder"
            raise DataError(f"{root} is not a nuScenes root with version {version}: {reason}. Check data.root")
        self.tables: dict[str, dict[str, Row]] = {name: _read_table(folder / f"{name}.json") for name in _TABLES}
        self._annotations: dict[str, list[Row]] = {}
        for row in self.tables["sample_annotation"].values():
            self._annotations.setdefault(row["sample_token"], []).append(row)
        self._keyframes: dict[str, dict[str, Row]] = {}
        for row in self.tables["sample_data"].values():
            if row["is_key_frame"]:
                sensor = self._row("calibrated_sensor", row["calibrated_sensor_token"])
                channel = self._row("sensor", sensor["sensor_token"])["channel"]
                self._keyframes.setdefault(row["sample_token"], {})[channel] = row

    def scene_names(self) -> list[str]:
        """Names of all scenes, sorted."""
        return sorted(row["name"] for row in self.tables["scene"].values())

    def samples(self, scenes: set[str], cameras: tuple[str, ...], sweeps: int = 0) -> list[Sample]:
        """Samples of some scenes, by scene name and time, each with up to `sweeps` earlier LiDAR turns."""
        named = [(self._row("scene", row["scene_token"])["name"], row) for row in self.tables["sample"].values()]
        chosen = sorted((pair for pair in named if pair[0] in scenes), key=lambda pair: (pair[0], pair[1]["timestamp"]))
        return [self._sample(row, scene, cameras, sweeps) for scene, row in chosen]

    def _row(self, table: str, token: str) -> Row:
        try:
            return self.tables[table][token]
        except KeyError:
            raise DataError(f"dangling token: {table}.json in {self.root} has no row {token!r}") from None

    def _sample(self, row: Row, scene: str, cameras: tuple[str, ...], sweeps: int) -> Sample:
        channels = self._keyframes.get(row["token"], {})
        missing = [name for name in (LIDAR_NAME, *cameras) if name not in channels]
        if missing:
            raise DataError(f"sample {row['token']} of {scene} has no keyframe of {missing}")
        lidar = channels[LIDAR_NAME]
        lidar2ego = self._sensor_pose(lidar)
        ego2global = self._ego_pose(lidar)
        rows, racks = self._annotated(row["token"])
        annotations = _global_boxes([(annotation, self._velocity(annotation)) for annotation, _ in rows])
        return Sample(
            token=row["token"],
            scene=scene,
            timestamp_s=row["timestamp"] / 1e6,
            image_paths={name: self.root / channels[name]["filename"] for name in cameras},
            points_path=self.root / lidar["filename"],
            calibration=self._calibration(channels, cameras, ego2global @ lidar2ego),
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            boxes=_boxes_in(annotations, invert(ego2global @ lidar2ego)),
            labels=np.array([CLASS_NAMES.index(name) for _, name in rows], dtype=np.int64),
            num_points=np.array([a["num_lidar_pts"] + a["num_radar_pts"] for a, _ in rows], dtype=np.int64),
            attributes=tuple(self._attribute(annotation) for annotation, _ in rows),
            sweeps=self._sweeps(lidar, ego2global @ lidar2ego, sweeps),
            annotations=annotations,
            bike_racks=_global_boxes([(rack, (np.nan, np.nan)) for rack in racks]),
        )

    def _sweeps(self, keyframe: Row, lidar2global: NDArray[np.float64], count: int) -> tuple[Sweep, ...]:
        """Up to `count` LiDAR turns before a keyframe; fewer at the start of a scene."""
        found: list[Sweep] = []
        data = keyframe
        while len(found) < count and data["prev"]:
            data = self._row("sample_data", data["prev"])
            sweep2global = self._ego_pose(data) @ self._sensor_pose(data)
            lag_s = (keyframe["timestamp"] - data["timestamp"]) / 1e6
            found.append(Sweep(self.root / data["filename"], invert(lidar2global) @ sweep2global, lag_s))
        return tuple(found)

    def _sensor_pose(self, data: Row) -> NDArray[np.float64]:
        sensor = self._row("calibrated_sensor", data["calibrated_sensor_token"])
        return pose(sensor["rotation"], sensor["translation"])

    def _ego_pose(self, data: Row) -> NDArray[np.float64]:
        ego = self._row("ego_pose", data["ego_pose_token"])
        return pose(ego["rotation"], ego["translation"])

    def _calibration(
        self, channels: dict[str, Row], cameras: tuple[str, ...], lidar2global: NDArray[np.float64]
    ) -> Calibration:
        # A camera fires at another time than the LiDAR: through the global frame, each with its own ego pose.
        lidar2cam, cam2img = [], []
        for name in cameras:
            cam2global = self._ego_pose(channels[name]) @ self._sensor_pose(channels[name])
            lidar2cam.append(invert(cam2global) @ lidar2global)
            sensor = self._row("calibrated_sensor", channels[name]["calibrated_sensor_token"])
            cam2img.append(np.asarray(sensor["camera_intrinsic"], dtype=np.float64))
        sizes = tuple((channels[name]["height"], channels[name]["width"]) for name in cameras)
        return Calibration(cameras, np.stack(cam2img), np.stack(lidar2cam), sizes)

    def _annotated(self, sample_token: str) -> tuple[list[tuple[Row, str]], list[Row]]:
        """Annotations of a sample that belong to a detection class, with its name, and the bike racks."""
        objects, racks = [], []
        for row in self._annotations.get(sample_token, []):
            category = self._row("category", self._row("instance", row["instance_token"])["category_token"])["name"]
            if category in CATEGORY_TO_CLASS:
                objects.append((row, CATEGORY_TO_CLASS[category]))
            elif category == BIKE_RACK_CATEGORY:
                racks.append(row)
        return objects, racks

    def _attribute(self, annotation: Row) -> str:
        """Name of the attribute of an annotation, '' where it has none."""
        names = [self._row("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        return names[0] if names else ""

    def _velocity(self, row: Row) -> tuple[float, float]:
        """Velocity (x, y) in the global frame, NaN where the track is too short."""
        first = self._row("sample_annotation", row["prev"]) if row["prev"] else row
        last = self._row("sample_annotation", row["next"]) if row["next"] else row
        if first is last:
            return np.nan, np.nan
        span_s = 1e-6 * (
            self._row("sample", last["sample_token"])["timestamp"]
            - self._row("sample", first["sample_token"])["timestamp"]
        )
        limit_s = _MAX_VELOCITY_SPAN_S * (2 if row["prev"] and row["next"] else 1)
        if span_s > limit_s:
            return np.nan, np.nan
        moved = np.array(last["translation"]) - np.array(first["translation"])
        return float(moved[0] / span_s), float(moved[1] / span_s)


def _global_boxes(rows: list[tuple[Row, tuple[float, float]]]) -> GlobalBoxes:
    """Annotations as columns, each with its velocity."""

    def column(name: str, width: int) -> NDArray[np.float64]:
        return np.array([row[name] for row, _ in rows], dtype=np.float64).reshape(-1, width)

    velocity_mps = np.array([velocity for _, velocity in rows], dtype=np.float64).reshape(-1, 2)
    return GlobalBoxes(column("translation", 3), column("size", 3), column("rotation", 4), velocity_mps)


def _boxes_in(annotations: GlobalBoxes, global2lidar: NDArray[np.float64]) -> NDArray[np.float64]:
    """Annotations as boxes [N, 9] of the LiDAR frame."""
    headings = [quaternion_to_matrix(rotation)[:2, 0] for rotation in annotations.rotation_wxyz]
    yaw = [np.arctan2(heading[1], heading[0]) for heading in headings]
    length_width_height = annotations.size_m[:, [1, 0, 2]]
    boxes = np.column_stack([annotations.translation_m, length_width_height, yaw, annotations.velocity_mps])
    return transform_boxes(boxes.reshape(-1, 9), global2lidar)


def _read_table(path: Path) -> dict[str, Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"nuScenes table {path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"nuScenes table {path} is not valid JSON (truncated copy?): {error}") from error
    table = {row["token"]: row for row in rows}
    if len(table) != len(rows):
        raise DataError(f"nuScenes table {path} repeats tokens: {len(rows)} rows, {len(table)} tokens")
    return table
