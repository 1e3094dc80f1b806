"""Reading point clouds and images, each error with its path, what was expected and what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.events import DroppedSensor, SensorKind
from bevkd_deploy.data.samples import Sample, Sweep
from bevkd_deploy.geometry.frames import transform_points

#: float32 columns of a nuScenes sweep: x, y, z, intensity, ring.
POINT_COLUMNS = 5

#: Half the side of the square around an earlier sweep's sensor that holds the vehicle's own returns.
EGO_HALF_SIDE_M = 1.0


def load_points(path: Path) -> NDArray[np.float32]:
    """Read a nuScenes .pcd.bin as [N, 5] float32: x, y, z (metres, lidar frame), intensity 0..255, time lag 0 s.

    Raises:
        DataError: the file is missing, empty, truncated or holds non-finite values.
    """
    raw = _read_bytes(path, "point cloud")
    row_bytes = POINT_COLUMNS * 4
    if not raw or len(raw) % row_bytes:
        raise DataError(
            f"point cloud {path} is empty or truncated: {len(raw)} bytes, expected a positive multiple of {row_bytes} "
            f"({POINT_COLUMNS} float32 a point); copy the file again"
        )
    points = np.frombuffer(raw, dtype=np.float32).reshape(-1, POINT_COLUMNS).copy()
    finite = np.isfinite(points[:, :4]).all(axis=1)
    if not finite.all():
        raise DataError(f"point cloud {path}: {int((~finite).sum())} of {len(points)} points hold NaN or infinity")
    points[:, 4] = 0.0  # the ring number gives way to the time lag: a single sweep has none
    return points


@dataclass(frozen=True, eq=False)
class Sensors:
    """What the sensors of one frame saw.

    Attributes:
        images: RGB uint8 [H, W, 3] in the cameras' order; None for a camera that is missing in this frame.
        points: float32 [P, 5] of keyframe and sweeps, the keyframe's LiDAR frame.
        dropped: sensors that the frame goes without, whether that was known before or found as they were read.
    """

    images: list[NDArray[np.uint8] | None]
    points: NDArray[np.float32]
    dropped: tuple[DroppedSensor, ...]


def load_sample(sample: Sample, cameras: Sequence[str]) -> Sensors:
    """Read a frame as its `on_error` says: a broken file is an error, or the frame goes without that sensor.

    Raises:
        DataError: a file is missing or broken, and `sample.on_error` is "fail".
    """
    read = _Reader(sample, cameras)
    images = [read.image(name) if name in sample.image_paths else None for name in cameras]
    return Sensors(images, read.points(), tuple(read.dropped))


def without_broken_files(sample: Sample, cameras: Sequence[str]) -> Sample:
    """The sample with the paths of some cameras, and of its LiDAR, that can be read; for those who read them again."""
    lost = {(event.kind, event.sensor) for event in load_sample(sample, cameras).dropped}
    names = [name for name in cameras if name in sample.image_paths and ("camera", name) not in lost]
    return replace(
        sample,
        image_paths={name: sample.image_paths[name] for name in names},
        calibration=sample.calibration.select(names),
        points_path=None if ("lidar", LIDAR_NAME) in lost else sample.points_path,
    )


def load_sample_images(sample: Sample, cameras: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """Images of some cameras as RGB uint8 [H, W, 3], in the given order; each must have its calibration's size.

    None stands for a camera that is missing in this frame; a broken file is an error whatever `on_error` says.
    """
    return load_sample(replace(sample, points_path=None, sweeps=(), on_error="fail"), cameras).images


def load_sample_points(sample: Sample) -> NDArray[np.float32]:
    """Points [N, 5] of a keyframe and its sweeps in the keyframe's LiDAR frame, each with its time lag.

    No points where the LiDAR is missing in this frame; a broken file is an error whatever `on_error` says.

    Source of the rule: nuscenes-devkit 1.2.0, LidarPointCloud.from_file_multisweep. Returns within a square of 1 m
    around an earlier sensor position are the vehicle itself and are dropped, as there; those of the keyframe stay.
    """
    return load_sample(replace(sample, on_error="fail"), ()).points


Read = TypeVar("Read")


class _Reader:
    """Reads the files of one sample and remembers what it goes without."""

    def __init__(self, sample: Sample, cameras: Sequence[str]) -> None:
        self.sample = sample
        self.sizes = dict(zip(sample.calibration.cameras, sample.calibration.image_sizes_px, strict=True))
        self.dropped = [event for event in sample.dropped if event.kind != "camera" or event.sensor in cameras]

    def image(self, camera: str) -> NDArray[np.uint8] | None:
        """One image, or None where it cannot be read."""
        path = self.sample.image_paths[camera]
        return self._attempt("camera", camera, lambda: load_image(path, self.sizes[camera]))

    def points(self) -> NDArray[np.float32]:
        """Points of what can be read of the keyframe's turn and the earlier ones; none without a keyframe."""
        none = np.zeros((0, POINT_COLUMNS), dtype=np.float32)
        path = self.sample.points_path
        if path is None:
            return none
        keyframe = self._attempt("lidar", LIDAR_NAME, lambda: load_points(path))
        if keyframe is None:
            return none  # a frame of old points alone would pass for a frame of now
        clouds = [keyframe]
        for sweep in self.sample.sweeps:
            points = self._attempt("sweep", LIDAR_NAME, lambda sweep=sweep: _load_sweep(sweep))  # type: ignore[misc]
            if points is not None:
                clouds.append(points)
        return np.concatenate(clouds) if len(clouds) > 1 else clouds[0]

    def _attempt(self, kind: SensorKind, sensor: str, read: Callable[[], Read]) -> Read | None:
        try:
            return read()
        except DataError as error:
            if self.sample.on_error == "fail":
                raise
            self.dropped.append(DroppedSensor(self.sample.token, kind, sensor, str(error)))
            return None


def _load_sweep(sweep: Sweep) -> NDArray[np.float32]:
    points = load_points(sweep.path)
    points = points[~((np.abs(points[:, 0]) < EGO_HALF_SIDE_M) & (np.abs(points[:, 1]) < EGO_HALF_SIDE_M))]
    points[:, :3] = transform_points(sweep.sweep2lidar, points[:, :3].astype(np.float64))
    points[:, 4] = sweep.time_lag_s
    return points


def load_image(path: Path, expected_hw_px: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a JPEG or PNG as RGB uint8 [H, W, 3].

    Raises:
        DataError: the file is missing, truncated, no image, or not of the expected (height, width).
    """
    raw = _read_bytes(path, "image")
    # OpenCV fills the lost part of a truncated JPEG with grey and returns it, so the end marker is checked here.
    if raw[:2] == b"\xff\xd8" and b"\xff\xd9" not in raw[-64:]:
        raise DataError(f"image {path} is truncated: {len(raw)} bytes without a JPEG end marker; copy the file again")
    decoded = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_COLOR) if raw else None
    if decoded is None:
        raise DataError(f"image {path} cannot be decoded ({len(raw)} bytes); expected a JPEG or PNG")
    if expected_hw_px is not None and decoded.shape[:2] != tuple(expected_hw_px):
        raise DataError(f"image {path} is {decoded.shape[:2]} (height, width), its calibration says {expected_hw_px}")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}") from error


def files_digest(samples: Sequence[Sample], cameras: Sequence[str]) -> str:
    """Hash of name, size and time of every sensor file of some samples, in order; the files are not read."""
    digest = hashlib.sha256()
    stamps: dict[Path, str] = {}
    for sample in samples:
        images = [sample.image_paths[camera] for camera in cameras if camera in sample.image_paths]
        points = [sample.points_path] if sample.points_path is not None else []
        digest.update(sample.token.encode())
        for path in [*images, *points, *(sweep.path for sweep in sample.sweeps)]:
            if path not in stamps:  # a sweep belongs to several keyframes
                stat = path.stat() if path.is_file() else None
                stamps[path] = f" {path.name} {stat.st_size} {stat.st_mtime_ns}" if stat else f" {path.name} missing"
            digest.update(stamps[path].encode())
    return digest.hexdigest()
