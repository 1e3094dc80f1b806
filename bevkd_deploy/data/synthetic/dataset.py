"""Write a synthetic dataset in the nuScenes layout."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CAMERA_NAMES, LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.contracts.files import sha256_json, write_json, write_text
from bevkd_deploy.data.splits import official_scenes
from bevkd_deploy.data.synthetic import tables as nuscenes_tables
from bevkd_deploy.data.synthetic.camera import CameraPainter, make_weather
from bevkd_deploy.data.synthetic.ground import paint_ground
from bevkd_deploy.data.synthetic.layout import make_layout
from bevkd_deploy.data.synthetic.lidar import Lidar, Scan
from bevkd_deploy.data.synthetic.portable import cos_sin, generators, transform, turn_z
from bevkd_deploy.data.synthetic.profiles import KEYFRAME_RATE_HZ, Profile, get_profile
from bevkd_deploy.data.synthetic.rig import make_rig
from bevkd_deploy.data.synthetic.tables import VERSION, BoxRecord, SceneTables, Tables
from bevkd_deploy.data.synthetic.world import Snapshot, World

Array = NDArray[np.float64]

#: Raised whenever the same parameters would give different files.
GENERATOR_VERSION = 2
JPEG_QUALITY = 90
_EPOCH_US = 1_700_000_000_000_000
_FOLDERS = ("samples", "sweeps")


@dataclass(frozen=True)
class SceneJob:
    """All that one scene depends on."""

    root: Path
    profile: Profile
    seed: int
    index: int
    split: str
    name: str


def write_dataset(
    dest: Path,
    *,
    profile: str | Profile,
    difficulty: str | None = None,
    train_scenes: int,
    val_scenes: int,
    seed: int,
    on_scene: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Path:
    """Write a synthetic dataset in the nuScenes layout (version folder v1.0-trainval).

    Scenes are named after the official train and val scenes, so that tools which know only the official version and
    splits (nuscenes-devkit's evaluation, mmdet3d's converters) read the dataset as it is; `dataset.json` tells that it
    is synthetic.

    The result depends on profile, difficulty, scene counts and seed alone, not on `workers` nor on the CPU. Everything
    is written into a folder beside `dest` that is renamed at the end; `dataset.json` is written last.

    Args:
        dest: dataset folder; must not exist, or be empty.
        profile: name of a profile, or a profile.
        difficulty: easy, normal or hard; None: the profile's own.
        train_scenes: scenes in the train split.
        val_scenes: scenes in the val split.
        seed: world seed.
        on_scene: called with (scenes done, scenes in all) after each scene.
        workers: processes that write scenes.

    Returns:
        `dest`.

    Raises:
        UsageError: unknown profile or difficulty, or a number out of range.
        DataError: `dest` holds something already.
    """
    chosen = get_profile(profile, difficulty)
    for name, value, least, most in (
        ("train_scenes", train_scenes, 1, len(official_scenes("train"))),
        ("val_scenes", val_scenes, 0, len(official_scenes("val"))),
        ("workers", workers, 1, 256),
        ("seed", seed, 0, 2**31),
    ):
        if value < least:
            raise UsageError(f"synthetic data: {name} must be at least {least}, got {value}")
        if value > most:
            raise UsageError(f"synthetic data: {name} must be at most {most}, got {value}")
    dest = Path(dest)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise DataError(
            f"will not write a synthetic dataset into {dest}: it exists and is not an empty folder; remove it first"
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        temporary.chmod(0o755)
        named = [("train", name) for name in official_scenes("train")[:train_scenes]]
        named += [("val", name) for name in official_scenes("val")[:val_scenes]]
        jobs = [SceneJob(temporary, chosen, seed, index, *split) for index, split in enumerate(named, start=1)]
        _write_all(jobs, on_scene, workers)
        if dest.exists():
            dest.rmdir()
        os.rename(temporary, dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dest


def _write_all(jobs: list[SceneJob], on_scene: Callable[[int, int], None] | None, workers: int) -> None:
    root, profile = jobs[0].root, jobs[0].profile
    for kind in _FOLDERS:
        for channel in (*CAMERA_NAMES, LIDAR_NAME):
            (root / kind / channel).mkdir(parents=True)
    written: dict[int, Tables] = {}
    for index, part in _run(jobs, workers):
        written[index] = part
        if on_scene is not None:
            on_scene(len(written), len(jobs))
    parts = [written[job.index] for job in jobs]
    logs = [record["token"] for part in parts for record in part["log"]]
    merged = nuscenes_tables.merge([nuscenes_tables.fixed_tables(logs), *parts])
    (root / "maps").mkdir()
    if not cv2.imwrite(str(root / nuscenes_tables.MAP_FILE), np.zeros((64, 64), dtype=np.uint8)):
        raise DataError(f"could not write {root / nuscenes_tables.MAP_FILE}; check the disk")
    for name, records in merged.items():
        # One record a line: the indented form of write_json takes ten times as long on these thousands of records.
        lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
        write_text(root / VERSION / f"{name}.json", f"[\n{lines}\n]\n")
    splits = {split: [job.name for job in jobs if job.split == split] for split in ("train", "val")}
    write_json(root / "splits.json", splits)
    parameters: dict[str, Any] = {
        "generator_version": GENERATOR_VERSION,
        "profile": asdict(profile),
        "seed": jobs[0].seed,
        "scenes": {split: len(names) for split, names in splits.items()},
    }
    write_json(root / "dataset.json", {"version": VERSION, **parameters, "parameters_sha256": sha256_json(parameters)})


def _run(jobs: list[SceneJob], workers: int) -> Iterator[tuple[int, Tables]]:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield job.index, write_scene(job)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that holds threads may deadlock
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(write_scene, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future].index, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    cv2.setNumThreads(1)


def write_scene(job: SceneJob) -> Tables:
    """Write the sensor files of one scene and return its tables."""
    return _SceneWriter(job).write()


class _SceneWriter:
    """Senses one scene instant by instant."""

    def __init__(self, job: SceneJob) -> None:
        self._job = job
        profile = job.profile
        world_rng, self._rng, noise_rng = generators([job.seed, job.index, job.split == "val"], 3)
        self._layout = make_layout(profile, world_rng)
        self._world = World(self._layout, profile.reach_m)
        self._rig = make_rig(profile, world_rng)
        self._ground = paint_ground(self._layout, world_rng)
        weather = make_weather(world_rng, profile.difficulty)
        self._painter = CameraPainter(self._ground, weather, profile.image_hw_px, noise_rng)
        self._lidar = Lidar(profile, self._rig.lidar2ego)
        self._map2global = np.array([*world_rng.uniform(400, 1600, 2), 0.0])
        self._start_us = _EPOCH_US + job.index * 100_000_000
        self._log = f"{nuscenes_tables.VEHICLE}-{job.seed}-{job.index:04d}"
        self._tables = SceneTables(
            f"{job.seed}/{profile.name}/{job.index}", job.name, self._log, f"synthetic street, {profile.name}"
        )

    def write(self) -> Tables:
        """All instants of the scene."""
        self._tables.add_rig(self._rig)
        stride = 1 + self._job.profile.sweeps_between
        for keyframe in range(self._job.profile.keyframes):
            index = keyframe * stride
            sample = self._tables.add_sample(self._time_us(index))
            for sweep in range(max(0, index - stride + 1), index):
                self._sweep(sweep, sample)
            self._keyframe(index, sample)
        return self._tables.finish()

    def _time_us(self, index: int) -> int:
        step = 1e6 / KEYFRAME_RATE_HZ / (1 + self._job.profile.sweeps_between)
        return self._start_us + round(index * step)

    def _ego2global(self, index: int) -> Array:
        x, y, yaw = self._layout.ego[index]
        matrix = np.eye(4)
        matrix[:3, :3] = turn_z(float(yaw))
        matrix[:3, 3] = self._map2global + [x, y, 0.0]
        return matrix

    def _sweep(self, index: int, sample: str) -> None:
        snapshot = self._world.snapshot(index, faces=False)
        scan = self._lidar.scan(snapshot, self._ground, self._layout.ego[index], self._rng, possible=False)
        self._save_points("sweeps", index, scan, sample)

    def _keyframe(self, index: int, sample: str) -> None:
        snapshot = self._world.snapshot(index)
        scan = self._lidar.scan(snapshot, self._ground, self._layout.ego[index], self._rng)
        self._save_points("samples", index, scan, sample)
        for camera in self._rig.cameras:
            image = self._painter.picture(snapshot, camera, self._layout.ego[index], self._rng)
            name = self._file("samples", camera.name, index, "jpg")
            path = self._job.root / name
            if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
                raise DataError(f"could not write {path}; check the disk")
            self._tables.add_data(
                camera.name, name, self._time_us(index), self._ego2global(index),
                sample_token=sample, is_key_frame=True, image_hw_px=camera.size_hw_px,
            )  # fmt: skip
        self._annotate(index, sample, snapshot, scan)

    def _save_points(self, kind: str, index: int, scan: Scan, sample: str) -> None:
        name = self._file(kind, LIDAR_NAME, index, "pcd.bin")
        scan.points.tofile(self._job.root / name)
        self._tables.add_data(
            LIDAR_NAME, name, self._time_us(index), self._ego2global(index),
            sample_token=sample, is_key_frame=kind == "samples",
        )  # fmt: skip

    def _file(self, kind: str, channel: str, index: int, suffix: str) -> str:
        return f"{kind}/{channel}/{self._log}__{channel}__{self._time_us(index)}.{suffix}"

    def _annotate(self, index: int, sample: str, snapshot: Snapshot, scan: Scan) -> None:
        points_ego = transform(self._rig.lidar2ego, scan.points[:, :3].astype(np.float64))
        counts = count_points(points_ego, snapshot.boxes)
        centers = transform(self._ego2global(index), snapshot.boxes[:, :3])
        for row in np.flatnonzero(snapshot.annotated):
            thing = self._layout.things[snapshot.things[row]]
            self._tables.add_box(
                sample,
                BoxRecord(
                    key=int(snapshot.things[row]),
                    category=thing.category,
                    attribute=thing.attribute,
                    center=centers[row],
                    size=thing.size,
                    yaw_rad=float(thing.poses[index, 2]),
                    num_points=int(counts[row]),
                    visibility=nuscenes_tables.visibility_token(int(scan.seen[row]), int(scan.possible[row])),
                ),
            )


def count_points(points: Array, boxes: Array) -> NDArray[np.int64]:
    """Points [P, 3] inside each upright box [N, 7] (x, y, z centre, l, w, h, yaw), same frame, [N]."""
    counts = np.zeros(len(boxes), dtype=np.int64)
    if not len(boxes):
        return counts
    bottom = (boxes[:, 2] - boxes[:, 5] / 2).min() - 1e-6  # most points are ground below every box
    points = points[points[:, 2] > bottom]
    order = np.argsort(points[:, 0], kind="stable")
    x_sorted, y_sorted, z_sorted = (points[order, axis] for axis in range(3))
    length_m, width_m, height_m = boxes[:, 3:6].T / 2
    reach = length_m + width_m
    cosines, sines = cos_sin(boxes[:, 6])
    starts, stops = (np.searchsorted(x_sorted, boxes[:, 0] + sign * reach) for sign in (-1, 1))
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        near = start + np.flatnonzero(np.abs(y_sorted[start:stop] - boxes[row, 1]) <= reach[row])
        dx, dy, up = x_sorted[near] - boxes[row, 0], y_sorted[near] - boxes[row, 1], z_sorted[near] - boxes[row, 2]
        along, across = dx * cosines[row] + dy * sines[row], dy * cosines[row] - dx * sines[row]
        counts[row] = np.count_nonzero(
            (np.abs(along) <= length_m[row]) & (np.abs(across) <= width_m[row]) & (np.abs(up) <= height_m[row])
        )
    return counts
