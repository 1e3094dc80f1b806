"""The nuScenes tables (`v1.0-*/*.json`) as samples; no devkit needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.events import DroppedSensor, OnError
from bevkd_deploy.data.index_cache import Listener, open_index
from bevkd_deploy.data.samples import GlobalBoxes, Sample, Sweep
from bevkd_deploy.data.table_index import BIKE_RACK, TableIndex
from bevkd_deploy.geometry.boxes import transform_boxes
from bevkd_deploy.geometry.calibration import Calibration, invertible
from bevkd_deploy.geometry.frames import invert, poses, quaternions_to_matrices

Array = NDArray[np.float64]


class NuScenesTables:
    """All samples of one version.

    The tables are read once; what samples need of them is kept (`index_cache`) and found again by their content.
    """

    def __init__(self, root: Path, version: str, listener: Listener | None = None) -> None:
        self.root = root
        self.index = open_index(root, version, listener)

    def scene_names(self) -> list[str]:
        """Names of all scenes that have samples, sorted."""
        return sorted(set(self.index.sample_scene))

    def channels(self) -> list[str]:
        """Names of all sensors, in the tables' order."""
        return list(self.index.channels)

    def samples(
        self, scenes: set[str], cameras: tuple[str, ...], sweeps: int = 0, on_error: OnError = "fail"
    ) -> list[Sample]:
        """Samples of some scenes, by scene name and time, each with up to `sweeps` earlier LiDAR turns.

        Args:
            scenes: names.
            cameras: channels to read, in this order.
            sweeps: earlier LiDAR turns of each sample; fewer at the start of a scene.
            on_error: "drop_sensor": a camera without a keyframe, a camera whose calibration or pose is broken, and a
                sweep whose pose is broken, are left out, as `Sample.dropped` says. The LiDAR's own keyframe and pose
                are always needed: they tie boxes, cameras and sweeps together.

        Raises:
            DataError: a sensor is missing or its calibration broken.
        """
        rows = [row for row, scene in enumerate(self.index.sample_scene) if scene in scenes]
        unknown = [name for name in cameras if name not in self.channels()]
        if unknown and rows:
            raise DataError(
                f"{self.root} has no sensors {unknown}; its channels are {self.channels()}. Check data.cameras"
            )
        if not rows:
            return []
        if not len(self.index.file_name):
            raise DataError(f"{self.root}: sample_data.json names no keyframe of any sensor")
        batch = _Batch(self.root, self.index, np.array(rows), cameras, sweeps, on_error)
        return [batch.sample(number) for number in range(len(rows))]


@dataclass(frozen=True, eq=False)
class _Sensors:
    """The keyframes of one channel in a batch of samples; pose and calibration are NaN where there is none."""

    rows: NDArray[np.int64]
    sensor2global: Array


class _Batch:
    """Samples of one call: all matrices at once, then one sample after another."""

    def __init__(
        self,
        root: Path,
        index: TableIndex,
        rows: NDArray[np.int64],
        cameras: tuple[str, ...],
        sweeps: int,
        on_error: OnError,
    ) -> None:
        self.root, self.index, self.rows = root, index, rows
        self.cameras, self.on_error = cameras, on_error
        self.attributes = [*index.attributes, ""]  # row -1, no attribute, is the last one
        channels = list(index.channels)
        self.lidar = self._sensors(
            index.keyframes[rows, channels.index(LIDAR_NAME)] if LIDAR_NAME in channels else None
        )
        self.lidar2ego = self._sensor2ego(self.lidar.rows)
        self.ego2global = self._ego2global(self.lidar.rows)
        self._check_lidar()
        self.global2lidar = invert(self.lidar.sensor2global)
        self.views = [self._sensors(index.keyframes[rows, channels.index(name)]) for name in cameras]
        shape = (len(rows), len(cameras))
        self.cam2img = np.full((*shape, 3, 3), np.nan)
        self.lidar2cam = np.full((*shape, 4, 4), np.nan)
        for column, view in enumerate(self.views):
            there = view.rows >= 0
            self.cam2img[there, column] = index.cam2img[index.file_sensor[view.rows[there]]]
            sound = there & invertible(view.sensor2global)
            # A camera fires at another time than the LiDAR: through the global frame, each with its own ego pose.
            self.lidar2cam[sound, column] = invert(view.sensor2global[sound]) @ self.lidar.sensor2global[sound]
        self.usable = invertible(self.cam2img) & invertible(self.lidar2cam)
        self.earlier = self._earlier(sweeps)
        self.boxes = self._boxes()

    def sample(self, number: int) -> Sample:
        """The sample at one place of the batch."""
        index, row = self.index, self.rows[number]
        token = index.sample_token[row]
        dropped: list[DroppedSensor] = []
        kept = [column for column in range(len(self.cameras)) if self._keeps(number, column, token, dropped)]
        sweeps = tuple(self._sweeps(number, token, dropped))
        names = tuple(self.cameras[column] for column in kept)
        files = [int(self.views[column].rows[number]) for column in kept]
        start, end = index.box_start[row], index.box_start[row + 1]
        chosen = np.flatnonzero(index.box_label[start:end] != BIKE_RACK) + start
        racks = np.flatnonzero(index.box_label[start:end] == BIKE_RACK) + start
        return Sample(
            token=token,
            scene=index.sample_scene[row],
            timestamp_s=int(index.sample_time_us[row]) / 1e6,
            image_paths={name: self.root / index.file_name[file] for name, file in zip(names, files, strict=True)},
            points_path=self.root / index.file_name[self.lidar.rows[number]],
            calibration=Calibration(
                names, self.cam2img[number, kept], self.lidar2cam[number, kept], self._image_sizes(files)
            ),
            lidar2ego=self.lidar2ego[number],
            ego2global=self.ego2global[number],
            boxes=transform_boxes(self.boxes[chosen - self.box_offset], self.global2lidar[number]),
            labels=index.box_label[chosen].astype(np.int64),
            num_points=index.box_points[chosen].sum(axis=1, dtype=np.int64),
            attributes=tuple(self.attributes[row] for row in index.box_attribute[chosen].tolist()),
            sweeps=sweeps,
            annotations=self._global_boxes(chosen),
            bike_racks=self._global_boxes(racks),
            on_error=self.on_error,
            dropped=tuple(dropped),
        )

    def _sensors(self, rows: NDArray[np.int32] | None) -> _Sensors:
        files = np.full(len(self.rows), -1, dtype=np.int64) if rows is None else rows.astype(np.int64)
        return _Sensors(files, self._ego2global(files) @ self._sensor2ego(files))

    def _sensor2ego(self, files: NDArray[np.int64]) -> Array:
        sensors = self.index.sensor2ego[self.index.file_sensor[files]]
        return self._masked(poses(sensors[:, 3:], sensors[:, :3]), files)

    def _ego2global(self, files: NDArray[np.int64]) -> Array:
        ego = self.index.ego2global[files]
        return self._masked(poses(ego[:, 3:], ego[:, :3]), files)

    @staticmethod
    def _masked(matrices: Array, files: NDArray[np.int64]) -> Array:
        matrices[files < 0] = np.nan
        return matrices

    def _check_lidar(self) -> None:
        sound = invertible(self.lidar.sensor2global)
        for number in np.flatnonzero(~sound)[:1]:
            file = self.lidar.rows[number]
            problem = "has no keyframe of" if file < 0 else "has a broken pose or calibration of"
            detail = "" if file < 0 else f": {_pose_words(self.index, file)}"
            row = self.rows[number]
            token, scene = self.index.sample_token[row], self.index.sample_scene[row]
            raise DataError(
                f"sample {token} of {scene} {problem} {[LIDAR_NAME]}{detail}; its frame is that of all boxes, so it is "
                "needed whatever data.on_error says"
            )

    def _keeps(self, number: int, column: int, token: str, dropped: list[DroppedSensor]) -> bool:
        """Whether a camera can be used; if not, an event, or an error."""
        if self.usable[number, column]:
            return True
        name, file = self.cameras[column], int(self.views[column].rows[number])
        scene = self.index.sample_scene[self.rows[number]]
        if file < 0:
            reason = f"sample {token} of {scene} has no keyframe of {[name]}"
        else:
            path = self.root / self.index.file_name[file]
            reason = (
                f"calibration of {name} is not invertible in sample {token} of {scene} ({path}): cam2img "
                f"{self.cam2img[number, column].tolist()}, {_pose_words(self.index, file)}"
            )
        if self.on_error == "fail":
            raise DataError(reason)
        dropped.append(DroppedSensor(token, "camera", name, reason))
        return False

    def _earlier(self, sweeps: int) -> list[tuple[NDArray[np.int64], Array, NDArray[np.bool_]]]:
        """Per step back, the LiDAR files (-1: none), their sweep2lidar [N, 4, 4] and whether that is sound."""
        steps = []
        files = self.lidar.rows
        for _ in range(sweeps):
            files = np.where(files >= 0, self.index.previous[files], -1).astype(np.int64)
            if (files < 0).all():
                break
            sweep2global = self._ego2global(files) @ self._sensor2ego(files)
            sweep2lidar = self.global2lidar @ sweep2global
            steps.append((files, sweep2lidar, invertible(sweep2lidar)))
        return steps

    def _sweeps(self, number: int, token: str, dropped: list[DroppedSensor]) -> list[Sweep]:
        found: list[Sweep] = []
        times_us = self.index.file_time_us
        for files, sweep2lidar, sound in self.earlier:
            file = files[number]
            if file < 0:
                break
            path = self.root / self.index.file_name[file]
            if sound[number]:
                lag_s = (int(times_us[self.lidar.rows[number]]) - int(times_us[file])) / 1e6
                found.append(Sweep(path, sweep2lidar[number], lag_s))
                continue
            reason = f"the pose of sweep {path} of sample {token} is broken: {_pose_words(self.index, int(file))}"
            if self.on_error == "fail":
                raise DataError(reason)
            dropped.append(DroppedSensor(token, "sweep", LIDAR_NAME, reason))
        return found

    def _boxes(self) -> Array:
        """[A, 9] in the global frame, of the boxes from the batch's first sample to its last."""
        index = self.index
        self.box_offset = int(index.box_start[self.rows.min()])
        span = slice(self.box_offset, int(index.box_start[self.rows.max() + 1]))
        heading = quaternions_to_matrices(index.box_rotation[span])[:, :2, 0]
        yaw = np.arctan2(heading[:, 1], heading[:, 0])
        length_width_height = index.box_size[span][:, [1, 0, 2]]
        return np.column_stack([index.box_translation[span], length_width_height, yaw, index.box_velocity[span]])

    def _global_boxes(self, rows: NDArray[np.int64]) -> GlobalBoxes:
        index = self.index
        return GlobalBoxes(
            index.box_translation[rows], index.box_size[rows], index.box_rotation[rows], index.box_velocity[rows]
        )

    def _image_sizes(self, files: Sequence[int]) -> tuple[tuple[int, int], ...]:
        return tuple((int(height), int(width)) for height, width in self.index.image_hw_px[list(files)])


def _pose_words(index: TableIndex, file: int) -> str:
    sensor = index.sensor2ego[index.file_sensor[file]]
    ego = index.ego2global[file]
    return (
        f"sensor2ego rotation {sensor[3:].tolist()} translation {sensor[:3].tolist()}, ego2global rotation "
        f"{ego[3:].tolist()} translation {ego[:3].tolist()}"
    )
