"""mmdet3d info files (info_version 1.1) as samples.

What such a file cannot carry: annotations in the global frame with their full rotation, and bike racks; both are None.
mmdet3d's own converter keeps LiDAR-frame matrices as float32, and neither attributes, scene names nor image sizes:
attributes then follow from the speed, the scene is the log's name in the LiDAR file's, and the first readable image of
a camera tells its size. Files of `bevkd data infos` hold all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES, LIDAR_NAME, attribute_for
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.events import DroppedSensor, OnError, SensorKind
from bevkd_deploy.data.safe_pickle import load_pickle
from bevkd_deploy.data.samples import Sample, Sweep
from bevkd_deploy.data.sensor_files import load_image
from bevkd_deploy.geometry.calibration import Calibration, invertible
from bevkd_deploy.geometry.frames import invert

#: `attr_label` of an instance counts in these, unless metainfo has a list `attributes`.
#: Source: mmdet3d 1.4.0, tools/dataset_converters/nuscenes_converter.py, nus_attributes.
MMDET3D_ATTRIBUTES: tuple[str, ...] = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.standing",
    "pedestrian.sitting_lying_down", "vehicle.moving", "vehicle.parked", "vehicle.stopped", "",
)  # fmt: skip

INFO_VERSION = "1.1"
_SENSOR_FOLDERS = ("samples", "sweeps")


@dataclass(frozen=True)
class InfoOptions:
    """What is read of an info file.

    Attributes:
        cameras: in this order; None: those of each frame.
        sweeps: earlier LiDAR turns of each sample.
        on_error: "drop_sensor": cameras and sweeps that are missing or broken are left out (`Sample.dropped`).
        collect: given, every problem is told to it and reading goes on; for a check of the whole file.
    """

    cameras: tuple[str, ...] | None
    sweeps: int = 0
    on_error: OnError = "fail"
    collect: Callable[[str], None] | None = None


def read_infos(
    root: Path, infos: str, cameras: tuple[str, ...], sweeps: int = 0, on_error: OnError = "fail"
) -> list[Sample]:
    """Samples of one info file.

    Args:
        root: dataset folder; sensor files lie in it, or in its samples/<SENSOR>/ and sweeps/<SENSOR>/ folders.
        infos: the .pkl file, relative to root; '*' patterns are allowed when exactly one file matches.
        cameras: cameras to read, in this order.
        sweeps: earlier LiDAR turns of each sample, as far as the file has them.
        on_error: "drop_sensor": cameras and sweeps that are missing or broken are left out (`Sample.dropped`).

    Raises:
        DataError: root or file is missing, or the content is not an info file of version 1.1.
    """
    return read_info_file(_find_infos(root, infos), root, InfoOptions(cameras, sweeps, on_error))


def read_info_file(path: Path, root: Path, options: InfoOptions) -> list[Sample]:
    """As `read_infos`, of the info file at `path`, which may lie anywhere."""
    reader = _Reader(path, root, options)
    samples = [sample for number in range(len(reader.infos)) if (sample := reader.sample(number)) is not None]
    if (
        options.sweeps
        and options.collect is None
        and not any(info.get("lidar_sweeps") for info in reader.infos if isinstance(info, dict))
    ):
        raise DataError(f"{path} holds no lidar_sweeps, {options.sweeps} are asked for; make it with sweeps, or set 0")
    return samples


def _find_infos(root: Path, infos: str) -> Path:
    if not root.is_dir():
        raise DataError(f"data root {root} is not a folder; set data.root to the dataset's folder")
    matches = sorted(root.glob(infos))
    if len(matches) != 1:
        raise DataError(f"expected one file {infos} in {root}, found {[m.name for m in matches] or 'none'}")
    return matches[0]


class _Malformed(Exception):
    """One part of an info is not what it must be."""


class _Reader:
    """Reads one info file."""

    def __init__(self, path: Path, root: Path, options: InfoOptions) -> None:
        self.path, self.root, self.options = path, root, options
        content = load_pickle(path)
        meta = content.get("metainfo") if isinstance(content, dict) else None
        version = meta.get("info_version") if isinstance(meta, dict) else None
        infos = content.get("data_list") if isinstance(content, dict) else None
        if version != INFO_VERSION or not isinstance(infos, list) or not infos:
            raise DataError(
                f"{path} is no mmdet3d info file: expected a dict with metainfo.info_version '{INFO_VERSION}' and a "
                f"data_list, got version {version!r}. Convert older files with mmdet3d's update_infos_to_v2.py"
            )
        assert isinstance(meta, dict)  # it has a version
        categories = meta.get("categories")
        if not isinstance(categories, dict):
            raise DataError(f"{path}: metainfo.categories must map class names to numbers, got {categories!r:.80}")
        self.infos: list[Any] = infos
        self.labels = {
            index: CLASS_NAMES.index(name)
            for name, index in categories.items()
            if name in CLASS_NAMES and isinstance(index, (int, np.integer))
        }
        attributes = meta.get("attributes", MMDET3D_ATTRIBUTES)
        if not isinstance(attributes, (list, tuple)):
            raise DataError(f"{path}: metainfo.attributes must be a list of names, got {attributes!r:.80}")
        self.attributes = tuple(map(str, attributes))
        self.sizes: dict[str, tuple[int, int]] = {}

    def sample(self, number: int) -> Sample | None:
        """One sample; None where a file is checked as a whole and the frame has no sample to give."""
        info = self.infos[number]
        where = f"{self.path}: data_list[{number}]"
        try:
            token = str(_entry(info, "token", where))
            return _Frame(self, info, f"{where} (sample {token})", token).sample()
        except _Malformed as problem:
            if self.options.collect is None:
                raise DataError(str(problem)) from None
            self.options.collect(str(problem))
            return None


@dataclass
class _Frame:
    """One entry of the data_list."""

    reader: _Reader
    info: dict[str, Any]
    where: str
    token: str
    dropped: list[DroppedSensor] = field(default_factory=list)

    def sample(self) -> Sample:
        """The sample; what cannot be done without raises `_Malformed`."""
        lidar = _entry(self.info, "lidar_points", self.where)
        lidar_path = str(_entry(lidar, "lidar_path", f"{self.where}.lidar_points"))
        timestamp_s = _number(self.info, "timestamp", self.where)
        calibration, paths = self._cameras(_entry(self.info, "images", self.where))
        boxes, labels, points, attributes = self._objects()
        return Sample(
            token=self.token,
            scene=str(self.info.get("scene_name") or PurePosixPath(lidar_path).name.split("__")[0]),
            timestamp_s=timestamp_s,
            image_paths=paths,
            points_path=self._lidar_file(lidar_path),
            calibration=calibration,
            lidar2ego=_matrix(lidar, "lidar2ego", f"{self.where}.lidar_points"),
            ego2global=_matrix(self.info, "ego2global", self.where),
            boxes=boxes,
            labels=labels,
            num_points=points,
            attributes=attributes,
            sweeps=self._sweeps(timestamp_s),
            on_error=self.reader.options.on_error,
            dropped=tuple(self.dropped),
        )

    def _without(self, kind: SensorKind, sensor: str, problem: str) -> None:
        """A sensor is missing or broken: an error, a finding, or an event."""
        options = self.reader.options
        if options.collect is not None:
            options.collect(problem)
        elif options.on_error == "fail":
            raise DataError(problem)
        self.dropped.append(DroppedSensor(self.token, kind, sensor, problem))

    def _lidar_file(self, name: str) -> Path | None:
        try:
            return _locate(self.reader.root, name, LIDAR_NAME)
        except DataError as error:
            self._without("lidar", LIDAR_NAME, f"{self.where}: {error}")
            return None

    def _cameras(self, images: Any) -> tuple[Calibration, dict[str, Path]]:
        if not isinstance(images, dict):
            raise _Malformed(f"{self.where}.images must be a dict of cameras, got {type(images).__name__}")
        asked = self.reader.options.cameras
        paths: dict[str, Path] = {}
        cam2img: list[NDArray[np.float64]] = []
        lidar2cam: list[NDArray[np.float64]] = []
        for name in images if asked is None else asked:
            try:
                if name not in images:
                    raise DataError(f"sample {self.token} lacks cameras {[name]}; it has {sorted(map(str, images))}")
                at = f"{self.where}.images.{name}"
                intrinsics = _matrix(images[name], "cam2img", at, ((3, 3), (3, 4), (4, 4)))[:3, :3]
                extrinsics = _matrix(images[name], "lidar2cam", at)
                if not (invertible(intrinsics) and invertible(extrinsics)):
                    raise DataError(
                        f"{at}: calibration is not invertible: cam2img {intrinsics.tolist()}, lidar2cam "
                        f"{extrinsics.tolist()}"
                    )
                path = _locate(self.reader.root, str(_entry(images[name], "img_path", at)), name)
                self._size(name, images[name], path)
            except (DataError, _Malformed) as error:
                self._without("camera", name, str(error))
                continue
            paths[name] = path
            cam2img.append(intrinsics)
            lidar2cam.append(extrinsics)
        stacked = [np.array(part).reshape(-1, *shape) for part, shape in ((cam2img, (3, 3)), (lidar2cam, (4, 4)))]
        sizes = tuple(self.reader.sizes[name] for name in paths)
        return Calibration(tuple(paths), stacked[0], stacked[1], sizes), paths

    def _size(self, name: str, image: dict[str, Any], path: Path) -> None:
        """Remember (height, width) of a camera: as told, else that of its first readable image."""
        if "height" in image and "width" in image:
            at = f"{self.where}.images.{name}"
            self.reader.sizes[name] = (int(_number(image, "height", at)), int(_number(image, "width", at)))
        elif name not in self.reader.sizes:
            height, width = load_image(path).shape[:2]
            self.reader.sizes[name] = (height, width)

    def _sweeps(self, timestamp_s: float) -> tuple[Sweep, ...]:
        found: list[Sweep] = []
        listed = self.info.get("lidar_sweeps") or []
        if not isinstance(listed, list):
            raise _Malformed(f"{self.where}.lidar_sweeps must be a list, got {type(listed).__name__}")
        for number, sweep in enumerate(listed[: self.reader.options.sweeps]):
            at = f"{self.where}.lidar_sweeps[{number}]"
            try:
                lidar = _entry(sweep, "lidar_points", at)
                lidar2sensor = _matrix(lidar, "lidar2sensor", f"{at}.lidar_points")
                if not invertible(lidar2sensor):
                    raise DataError(f"{at}: lidar2sensor is not invertible: {lidar2sensor.tolist()}")
                path = _locate(self.reader.root, str(_entry(lidar, "lidar_path", at)), LIDAR_NAME)
                lag_s = timestamp_s - _number(sweep, "timestamp", at)
            except (DataError, _Malformed) as error:
                self._without("sweep", LIDAR_NAME, str(error))
                continue
            found.append(Sweep(path, invert(lidar2sensor), lag_s))
        return tuple(found)

    def _objects(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
        """Boxes [N, 9], labels [N], points inside [N] and attributes of the detection classes."""
        rows: list[list[float]] = []
        labels: list[int] = []
        points: list[int] = []
        attributes: list[str] = []
        listed = self.info.get("instances", [])
        if not isinstance(listed, list):
            raise _Malformed(f"{self.where}.instances must be a list, got {type(listed).__name__}")
        for number, instance in enumerate(listed):
            at = f"{self.where}.instances[{number}]"
            label = self.reader.labels.get(int(_number(instance, "bbox_label_3d", at)))
            if label is None:
                continue
            row = [*_numbers(instance, "bbox_3d", at, 7), *_velocity(instance, at)]
            if not np.isfinite(row[:7]).all() or min(row[3:6]) <= 0:
                raise _Malformed(f"{at}: bbox_3d must be finite with positive sizes, got {row[:7]}")
            rows.append(row)
            labels.append(label)
            points.append(_points_inside(instance, at))
            attributes.append(self._attribute(instance, label, row, at))
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 9)
        return boxes, np.array(labels, dtype=np.int64), np.array(points, dtype=np.int64), tuple(attributes)

    def _attribute(self, instance: dict[str, Any], label: int, row: Sequence[float], at: str) -> str:
        if "attr_label" not in instance:
            return attribute_for(CLASS_NAMES[label], float(np.nan_to_num(np.hypot(row[7], row[8]))))
        number, names = int(_number(instance, "attr_label", at)), self.reader.attributes
        if not 0 <= number < len(names):
            raise _Malformed(f"{at}: attr_label must be 0..{len(names) - 1}, got {number}")
        return str(names[number])


def _points_inside(instance: dict[str, Any], at: str) -> int:
    """LiDAR and radar points; where they are not counted, 1 or 0 as the box is called valid or not."""
    if "num_lidar_pts" in instance:
        radar = _number(instance, "num_radar_pts", at) if "num_radar_pts" in instance else 0
        return int(_number(instance, "num_lidar_pts", at) + radar)
    return int(bool(_entry(instance, "bbox_3d_isvalid", f"{at} has no num_lidar_pts, and")))


def _velocity(instance: dict[str, Any], at: str) -> list[float]:
    return _numbers(instance, "velocity", at, 2) if "velocity" in instance else [np.nan, np.nan]


def _entry(mapping: Any, key: str, where: str) -> Any:
    if not isinstance(mapping, dict):
        raise _Malformed(f"{where} must be a dict, got {type(mapping).__name__}")
    if key not in mapping:
        raise _Malformed(f"{where} lacks '{key}'; it has {sorted(map(str, mapping))}")
    return mapping[key]


def _number(mapping: Any, key: str, where: str) -> float:
    value = _entry(mapping, key, where)
    if isinstance(value, (int, float, np.integer, np.floating)) and np.isfinite(value):
        return float(value)
    raise _Malformed(f"{where}.{key} must be a finite number, got {value!r:.80}")


def _numbers(mapping: Any, key: str, where: str, count: int) -> list[float]:
    value = _entry(mapping, key, where)
    try:
        flat = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        flat = np.zeros(0)
    if flat.shape != (count,):
        raise _Malformed(f"{where}.{key} must be {count} numbers, got {value!r:.80}")
    return [float(number) for number in flat]


def _matrix(mapping: Any, key: str, where: str, shapes: tuple[tuple[int, int], ...] = ((4, 4),)) -> NDArray[np.float64]:
    value = _entry(mapping, key, where)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in shapes:
        wanted = " or ".join(f"{list(shape)}" for shape in shapes)
        raise _Malformed(f"{where}.{key} must be a matrix {wanted}, got {list(matrix.shape)}: {value!r:.80}")
    return matrix


def _locate(root: Path, name: str, sensor: str) -> Path:
    """A sensor file by the name an info file gives: in root, or in samples/<SENSOR> or sweeps/<SENSOR> of it.

    mmdet3d writes bare names for keyframes, and for sweeps paths of the machine the file was made on.
    """
    parts = PurePosixPath(name).parts
    tail = next((parts[i:] for i in reversed(range(len(parts))) if parts[i] in _SENSOR_FOLDERS), None)
    candidates = [root / Path(*tail)] if tail else []
    candidates += [] if PurePosixPath(name).is_absolute() else [root / name]
    candidates += [root / folder / sensor / parts[-1] for folder in _SENSOR_FOLDERS] if parts else []
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"{sensor} file not found; tried {' and '.join(map(str, dict.fromkeys(candidates)))}")
