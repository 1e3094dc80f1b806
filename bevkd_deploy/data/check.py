"""Looking through a whole dataset once, and listing everything that is missing or broken."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bevkd_deploy.contracts.classes import LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.index_build import IndexBuilder
from bevkd_deploy.data.index_cache import Listener, bytes_meter
from bevkd_deploy.data.mmdet3d_infos import InfoOptions, read_info_file
from bevkd_deploy.data.sensor_files import load_image, load_points
from bevkd_deploy.data.table_index import TableIndex
from bevkd_deploy.geometry.calibration import invertible
from bevkd_deploy.geometry.frames import poses

#: Of one kind, no more findings than this are written out; the rest is counted.
MOST_OF_A_KIND = 1000

_FILES_PER_TASK = 16
_ALL_SWEEPS = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: table, token, box, pose, calibration, sample, points, image or info.
        problem: in words, with the path or the token.
    """

    kind: str
    problem: str


@dataclass
class CheckResult:
    """What a check saw.

    Attributes:
        samples: annotated keyframes.
        files: sensor files that were read.
        findings: tables first, then calibration and poses, then files.
    """

    samples: int = 0
    files: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, problem: str) -> None:
        """One more finding."""
        self.findings.append(Finding(kind, problem))


@dataclass(frozen=True)
class _File:
    """A sensor file to read: an image where a size (height, width) is expected, else a point cloud."""

    owner: str
    path: Path
    size_hw_px: tuple[int, int] | None = None


def check_dataset(
    root: Path, infos: Path | None = None, *, workers: int = 1, listener: Listener | None = None,
    on_files: Callable[[int, int], None] = lambda *_: None,
) -> CheckResult:  # fmt: skip
    """Read every table and every sensor file that samples are made of: keyframes of all cameras, all LiDAR turns.

    Args:
        root: dataset folder.
        infos: an mmdet3d info file to check; absent, the `v1.0-*` tables under root are checked.
        workers: processes that read sensor files.
        listener: told how far the reading of big tables is.
        on_files: called with (sensor files read, sensor files in all).
    """
    result = CheckResult()
    listener = listener or Listener()
    try:
        files = _check_infos(root, infos, result) if infos else _check_tables(root, result, listener)
    except DataError as error:
        result.add("info" if infos else "table", str(error))
        return result
    if not result.samples and not result.findings:
        result.add("table", f"{root} holds no samples")
    files = list({file.path: file for file in files}.values())
    result.files = len(files)
    done = 0
    for count, findings in _read_all(files, workers):
        done += count
        result.findings += findings
        on_files(done, len(files))
    result.findings = _shortened(result.findings)
    return result


def _check_infos(root: Path, path: Path, result: CheckResult) -> list[_File]:
    options = InfoOptions(
        None, _ALL_SWEEPS, on_error="drop_sensor", collect=lambda problem: result.add("info", problem)
    )
    samples = read_info_file(path, root, options)
    result.samples = len(samples)
    cameras = dict.fromkeys(name for sample in samples for name in sample.image_paths)
    files: list[_File] = []
    for sample in samples:
        owner = f"sample {sample.token}"
        gone = {event.sensor for event in sample.dropped}
        for name in cameras:
            if name not in sample.image_paths and name not in gone:
                result.add("sample", f"{owner} lacks cameras {[name]}; it has {sorted(sample.image_paths)}")
        sizes = zip(sample.calibration.cameras, sample.calibration.image_sizes_px, strict=True)
        files += [_File(f"{owner}: {name}", sample.image_paths[name], size) for name, size in sizes]
        clouds = [sweep.path for sweep in sample.sweeps]
        files += [_File(owner, path) for path in ([sample.points_path] if sample.points_path else []) + clouds]
    return files


def _check_tables(root: Path, result: CheckResult, listener: Listener) -> list[_File]:
    versions = sorted(path for path in root.glob("v1.0-*") if path.is_dir())
    if not versions:
        raise DataError(
            f"{root} is not a nuScenes root: it has no v1.0-* folder of tables. For mmdet3d info files add --infos FILE"
        )
    files: list[_File] = []
    for folder in versions:
        meter = bytes_meter(f"reading the tables of {folder.name}", folder, listener)
        index, _ = IndexBuilder(folder, result.add, meter).build()
        result.samples += len(index.sample_token)
        _check_matrices(index, result)
        _check_order(index, result)
        files += _files_of(index, root, result)
    return files


def _check_matrices(index: TableIndex, result: CheckResult) -> None:
    """Calibrations and ego poses that cannot be inverted; those of each sensor once."""
    channels = list(index.channels)
    cameras = set(index.sensor_channel[~np.isnan(index.cam2img).all(axis=(1, 2))].tolist())
    sensors_sound = invertible(poses(index.sensor2ego[:, 3:], index.sensor2ego[:, :3]))
    intrinsics_sound = invertible(index.cam2img)
    used, first_file = np.unique(index.file_sensor, return_index=True)
    for sensor, file in zip(used, first_file, strict=True):
        if sensor < 0:
            continue
        where = (
            f"calibration of {channels[index.sensor_channel[sensor]]} (of {index.file_name[file]}) is not invertible"
        )
        if not sensors_sound[sensor]:
            pose = index.sensor2ego[sensor]
            result.add("calibration", f"{where}: rotation {pose[3:].tolist()}, translation {pose[:3].tolist()}")
        if index.sensor_channel[sensor] in cameras and not intrinsics_sound[sensor]:
            result.add("calibration", f"{where}: camera_intrinsic {index.cam2img[sensor].tolist()}")
    unknown = np.isnan(index.ego2global).all(axis=1)  # no such row: a dangling token, reported as that
    sound = invertible(poses(index.ego2global[:, 3:], index.ego2global[:, :3]))
    for file in np.flatnonzero(~sound & ~unknown):
        pose = index.ego2global[file]
        words = f"rotation {pose[3:].tolist()}, translation {pose[:3].tolist()}"
        result.add("pose", f"ego pose of {index.file_name[file]} is no rotation and finite translation: {words}")


def _check_order(index: TableIndex, result: CheckResult) -> None:
    later = (index.previous >= 0) & (index.file_time_us[index.previous] >= index.file_time_us)
    for file in np.flatnonzero(later):
        result.add(
            "table",
            f"sample_data {index.file_token[file]} ({index.file_name[file]}): its prev "
            f"{index.file_token[index.previous[file]]} is not earlier",
        )


def _files_of(index: TableIndex, root: Path, result: CheckResult) -> list[_File]:
    """Files of cameras and LiDAR; keyframes that a sample lacks are findings."""
    channels = list(index.channels)
    is_camera = ~np.isnan(index.cam2img).all(axis=(1, 2))
    cameras = np.unique(index.sensor_channel[is_camera])
    cameras = cameras[cameras >= 0]
    files: list[_File] = []
    lidar = channels.index(LIDAR_NAME) if LIDAR_NAME in channels else -1
    if lidar < 0 and len(index.sample_token):
        result.add("sample", f"{root} has no sensor {LIDAR_NAME}; its channels are {channels}")
    wanted = [int(channel) for channel in cameras if (index.keyframes[:, channel] >= 0).any()]
    keyframe_of: dict[int, str] = {}
    for row in range(len(index.sample_token)):
        token, scene = index.sample_token[row], index.sample_scene[row]
        keyframes = index.keyframes[row]
        lost = [channels[channel] for channel in [*wanted, *([lidar] if lidar >= 0 else [])] if keyframes[channel] < 0]
        if lost:
            result.add("sample", f"sample {token} of {scene} has no keyframe of {lost}")
        if lidar >= 0:
            keyframe_of[int(keyframes[lidar])] = f"sample {token}"
        for channel in wanted:
            if (file := int(keyframes[channel])) >= 0:
                height, width = index.image_hw_px[file]
                owner = f"sample {token}: {channels[channel]}"
                files.append(_File(owner, root / index.file_name[file], (int(height), int(width))))
    turns = np.flatnonzero((index.sensor_channel[index.file_sensor] == lidar) & (lidar >= 0))
    files += [_File(keyframe_of.get(int(f), f"sweep {index.file_token[f]}"), root / index.file_name[f]) for f in turns]
    return files


def _read_all(files: list[_File], workers: int) -> Iterator[tuple[int, list[Finding]]]:
    """Findings of all files in their order, task by task."""
    tasks = [files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK)]
    if workers == 1 or len(tasks) < 2:
        yield from map(_read_some, tasks)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that holds threads may deadlock
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        yield from pool.map(_read_some, tasks)


def _read_some(files: list[_File]) -> tuple[int, list[Finding]]:
    findings: list[Finding] = []
    for file in files:
        try:
            if file.size_hw_px is None:
                load_points(file.path)
            else:
                load_image(file.path, file.size_hw_px)
        except DataError as error:
            findings.append(Finding("points" if file.size_hw_px is None else "image", f"{file.owner}: {error}"))
    return len(files), findings


def _shortened(findings: list[Finding]) -> list[Finding]:
    """At most MOST_OF_A_KIND of each kind, and how many more there are."""
    seen: Counter[str] = Counter()
    kept: list[Finding] = []
    for finding in findings:
        seen[finding.kind] += 1
        if seen[finding.kind] <= MOST_OF_A_KIND:
            kept.append(finding)
    more = {kind: count - MOST_OF_A_KIND for kind, count in seen.items() if count > MOST_OF_A_KIND}
    return kept + [Finding(kind, f"and {count} more findings of this kind") for kind, count in more.items()]
