"""The nuScenes tables as mmdet3d info files (info_version 1.1), so that mmdet3d trains on the very same data.

Source of the format: mmdet3d 1.4.0, tools/dataset_converters (nuscenes_converter.py, update_infos_to_v2.py). Beyond
it every info has `scene_name`, every image `height` and `width`, every instance `attr_label` (an index into
metainfo.attributes); matrices are float64. Boxes of categories that are no detection class (label -1 there, which
mmdet3d never uses) and `cam_instances` (for its camera-only models) are left out.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CLASS_NAMES, LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.data.mmdet3d_infos import INFO_VERSION, MMDET3D_ATTRIBUTES
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.table_index import BIKE_RACK, TableIndex
from bevkd_deploy.geometry.frames import invert, pose

#: As mmdet3d's converter.
MAX_SWEEPS = 10


def write_infos(
    tables: NuScenesTables,
    version: str,
    scenes: set[str],
    path: Path,
    *,
    sweeps: int = MAX_SWEEPS,
    on_sample: Callable[[int, int], None] | None = None,
) -> int:
    """Write one info file; returns the number of frames.

    Args:
        tables: the dataset.
        version: of the tables, for the file's metainfo.
        scenes: names of the scenes to write.
        path: the .pkl file.
        sweeps: earlier LiDAR turns of each frame, at most.
        on_sample: called with (frames done, frames in all).

    Raises:
        DataError: the scenes hold no samples, or a sensor is missing.
    """
    cameras = _cameras(tables)
    samples = tables.samples(scenes, cameras, sweeps)
    if not samples:
        raise DataError(f"no samples of the scenes {sorted(scenes)[:5]} in {tables.root}; nothing to write to {path}")
    writer = _Writer(tables)
    data_list = []
    for number, sample in enumerate(samples):
        data_list.append(writer.info(number, sample))
        if on_sample:
            on_sample(number + 1, len(samples))
    content = {
        "metainfo": {
            "categories": {name: number for number, name in enumerate(CLASS_NAMES)},
            "attributes": list(writer.attributes),
            "dataset": "nuscenes",
            "version": version,
            "info_version": INFO_VERSION,
        },
        "data_list": data_list,
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            pickle.dump(content, handle, protocol=4)

    write_atomic(path, write)
    return len(samples)


def _cameras(tables: NuScenesTables) -> tuple[str, ...]:
    """All cameras of a dataset: nuScenes' six in mmdet3d's order, then others in the tables' order."""
    index = tables.index
    channels = list(index.channels)
    is_camera = np.isfinite(index.cam2img).all(axis=(1, 2))
    found = {channels[channel] for channel in index.sensor_channel[is_camera] if channel >= 0}
    known = [name for name in CAMERA_NAMES if name in found]
    return (*known, *(name for name in channels if name in found and name not in known))


class _Writer:
    """Infos of the samples of one dataset."""

    def __init__(self, tables: NuScenesTables) -> None:
        self.index: TableIndex = tables.index
        self.root = tables.root
        self.channels = list(self.index.channels)
        self.rows = {token: row for row, token in enumerate(self.index.sample_token)}
        own = [name for name in self.index.attributes if name not in MMDET3D_ATTRIBUTES]
        self.attributes = (*MMDET3D_ATTRIBUTES, *own)

    def info(self, number: int, sample: Sample) -> dict[str, Any]:
        """One entry of the data_list."""
        assert sample.points_path is not None  # samples of tables always have it
        return {
            "sample_idx": number,
            "token": sample.token,
            "timestamp": sample.timestamp_s,
            "scene_name": sample.scene,
            "ego2global": sample.ego2global.tolist(),
            "images": {name: self._image(sample, name) for name in sample.image_paths},
            "lidar_points": {
                "num_pts_feats": 5,
                "lidar_path": sample.points_path.name,
                "lidar2ego": sample.lidar2ego.tolist(),
            },
            "lidar_sweeps": self._sweeps(sample),
            "instances": self._instances(sample),
        }

    def _file(self, sample: Sample, channel: str) -> int:
        return int(self.index.keyframes[self.rows[sample.token], self.channels.index(channel)])

    def _sensor2ego(self, file: int) -> list[list[float]]:
        row = self.index.sensor2ego[self.index.file_sensor[file]]
        matrix: list[list[float]] = pose(row[3:], row[:3]).tolist()
        return matrix

    def _image(self, sample: Sample, name: str) -> dict[str, Any]:
        file, view = self._file(sample, name), sample.calibration.cameras.index(name)
        height, width = sample.calibration.image_sizes_px[view]
        return {
            "img_path": sample.image_paths[name].name,
            "height": height,
            "width": width,
            "cam2img": sample.calibration.cam2img[view].tolist(),
            "sample_data_token": self.index.file_token[file],
            "timestamp": int(self.index.file_time_us[file]) / 1e6,
            "cam2ego": self._sensor2ego(file),
            "lidar2cam": sample.calibration.lidar2cam[view].tolist(),
        }

    def _sweeps(self, sample: Sample) -> list[dict[str, Any]]:
        found = []
        file = self._file(sample, LIDAR_NAME)
        for sweep in sample.sweeps:
            file = int(self.index.previous[file])
            ego = self.index.ego2global[file]
            found.append(
                {
                    "timestamp": int(self.index.file_time_us[file]) / 1e6,
                    "ego2global": pose(ego[3:], ego[:3]).tolist(),
                    "sample_data_token": self.index.file_token[file],
                    "lidar_points": {
                        "lidar_path": os.path.relpath(sweep.path, self.root),
                        "lidar2ego": self._sensor2ego(file),
                        "lidar2sensor": invert(sweep.sweep2lidar).tolist(),
                    },
                }
            )
        return found

    def _instances(self, sample: Sample) -> list[dict[str, Any]]:
        row = self.rows[sample.token]
        boxes = np.arange(self.index.box_start[row], self.index.box_start[row + 1])
        counts = self.index.box_points[boxes[self.index.box_label[boxes] != BIKE_RACK]]
        return [
            {
                "bbox_label": int(label),
                "bbox_3d": box[:7].tolist(),
                "bbox_3d_isvalid": bool(count.sum() > 0),
                "bbox_label_3d": int(label),
                "num_lidar_pts": int(count[0]),
                "num_radar_pts": int(count[1]),
                "velocity": box[7:9].tolist(),
                "attr_label": self.attributes.index(attribute),
            }
            for box, label, count, attribute in zip(sample.boxes, sample.labels, counts, sample.attributes, strict=True)
        ]
