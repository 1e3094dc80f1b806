"""Opening a split of the nuScenes tables: by the kept index, and by nuscenes-devkit.

python benchmarks/data/index.py

Generates tables of a tenth of nuScenes (100 scenes of 40 keyframes, ten LiDAR turns and six images of each of six
cameras a keyframe, 35 annotations; no sensor files) in a temporary folder. Each way of opening them is a process of
its own, whose peak memory is read at its end; cold and warm rounds alternate. Writes index.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.classes import CAMERA_NAMES, LIDAR_NAME
from bevkd_deploy.contracts.files import write_json

HERE = Path(__file__).resolve().parent
VERSION = "v1.0-trainval"
SWEEPS = 9
TURNS, IMAGES = 10, 6  # a keyframe, of the LiDAR and of each camera
NAMES_USED = ("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation",
              "sample_data", "scene", "sensor")  # fmt: skip


def write_tables(root: Path, scenes: int, keyframes: int, annotations: int) -> dict[str, int]:
    """Tables in nuScenes' sizes and proportions; returns the number of rows of each."""
    folder = root / VERSION
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    writer = _Tables(rng, scenes, keyframes, annotations)
    counts: dict[str, int] = {}
    for name in (*NAMES_USED, "visibility", "log", "map"):
        rows = list(writer.rows(name))
        counts[name] = len(rows)
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")
    (root / "splits.json").write_text(json.dumps({"train": [f"scene-{n:04d}" for n in range(scenes)], "val": []}))
    (root / "maps").mkdir()
    (root / "maps" / "m.png").touch()  # the devkit looks whether it is there
    return counts


class _Tables:
    def __init__(self, rng: np.random.Generator, scenes: int, keyframes: int, annotations: int) -> None:
        self.rng, self.scenes, self.keyframes, self.annotations = rng, scenes, keyframes, annotations

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of one table."""
        made: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "sample": self._samples,
            "sample_data": lambda: (row for row, _ in self._data()),
            "ego_pose": lambda: (row for _, row in self._data()),
            "sample_annotation": self._annotations,
        }
        return made[name]() if name in made else iter(self._small(name))

    def _small(self, name: str) -> list[dict[str, Any]]:
        scenes, channels = range(self.scenes), (LIDAR_NAME, *CAMERA_NAMES)
        calibrated = [
            {"token": _token("c", scene, channel), "sensor_token": _token("s", channel), **self._pose(),
             "camera_intrinsic": [] if channel == LIDAR_NAME else [[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]]}
            for scene in scenes for channel in channels
        ]  # fmt: skip
        return {
            "attribute": [{"token": _token("a"), "name": "vehicle.moving", "description": ""}],
            "calibrated_sensor": calibrated,
            "category": [{"token": _token("cat"), "name": "vehicle.car", "description": ""}],
            "instance": [{"token": _token("i", scene, n), "category_token": _token("cat"), "nbr_annotations": 1,
                          "first_annotation_token": "", "last_annotation_token": ""}
                         for scene in scenes for n in range(self.annotations)],
            "scene": [{"token": _token("scene", n), "log_token": _token("log"), "nbr_samples": self.keyframes,
                       "first_sample_token": _token("k", n, 0), "last_sample_token": _token("k", n, 0),
                       "name": f"scene-{n:04d}", "description": ""} for n in scenes],
            "sensor": [{"token": _token("s", channel), "channel": channel,
                        "modality": "lidar" if channel == LIDAR_NAME else "camera"} for channel in channels],
            "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
            "log": [{"token": _token("log"), "logfile": "", "vehicle": "", "date_captured": "", "location": ""}],
            "map": [{"token": _token("map"), "log_tokens": [_token("log")], "category": "", "filename": "maps/m.png"}],
        }[name]  # fmt: skip

    def _pose(self) -> dict[str, Any]:
        rotation = self.rng.normal(size=4)
        return {
            "translation": self.rng.uniform(-1000, 1000, 3).tolist(),
            "rotation": (rotation / np.linalg.norm(rotation)).tolist(),
        }

    def _samples(self) -> Iterator[dict[str, Any]]:
        for scene in range(self.scenes):
            for number in range(self.keyframes):
                yield {"token": _token("k", scene, number), "timestamp": self._time_us(scene, number), "prev": "",
                       "next": "", "scene_token": _token("scene", scene)}  # fmt: skip

    def _time_us(self, scene: int, number: int) -> int:
        return 1_530_000_000_000_000 + scene * 1_000_000_000 + number * 500_000

    def _data(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for scene in range(self.scenes):
            for channel in (LIDAR_NAME, *CAMERA_NAMES):
                lidar = channel == LIDAR_NAME
                each = TURNS if lidar else IMAGES
                before = ""
                for step in range(self.keyframes * each):
                    number, part = divmod(step, each)
                    token = _token("d", scene, channel, step)
                    time_us = self._time_us(scene, number) - (each - 1 - part) * 500_000 // each
                    key = part == each - 1
                    end = "LIDAR_TOP__%d.pcd.bin" if lidar else f"{channel}__%d.jpg"
                    name = f"{'samples' if key else 'sweeps'}/{channel}/n015-2018-07-24-11-22-45+0800__{end % time_us}"
                    yield (
                        {"token": token, "sample_token": _token("k", scene, number), "ego_pose_token": token,
                         "calibrated_sensor_token": _token("c", scene, channel), "timestamp": time_us,
                         "fileformat": "pcd" if lidar else "jpg", "is_key_frame": key, "height": 0 if lidar else 900,
                         "width": 0 if lidar else 1600, "filename": name, "prev": before,
                         "next": _token("d", scene, channel, step + 1) if step + 1 < self.keyframes * each else ""},
                        {"token": token, "timestamp": time_us, **self._pose()},
                    )  # fmt: skip
                    before = token

    def _annotations(self) -> Iterator[dict[str, Any]]:
        last = self.keyframes - 1
        for scene in range(self.scenes):
            for number in range(self.keyframes):
                for item in range(self.annotations):
                    yield {"token": _token("b", scene, number, item), "sample_token": _token("k", scene, number),
                           "instance_token": _token("i", scene, item), "visibility_token": "4",
                           "attribute_tokens": [_token("a")], **self._pose(), "size": [1.9, 4.6, 1.7],
                           "prev": _token("b", scene, number - 1, item) if number else "",
                           "next": _token("b", scene, number + 1, item) if number < last else "",
                           "num_lidar_pts": 12, "num_radar_pts": 1}  # fmt: skip


def _token(*parts: object) -> str:
    import hashlib

    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def open_with_bevkd(root: Path) -> int:
    """Samples of the split with nine sweeps."""
    from bevkd_deploy.contracts.recipe import DataConfig
    from bevkd_deploy.data.source import open_split

    return len(open_split(DataConfig(source="nuscenes", root=str(root), sweeps=SWEEPS), root, "train"))


def open_with_devkit(root: Path) -> int:
    """The devkit's constructor alone: it makes no samples, poses or velocities yet."""
    from nuscenes.nuscenes import NuScenes

    return len(NuScenes(version=VERSION, dataroot=str(root), verbose=False).sample)


def run_child(what: str, root: Path, cache: Path) -> dict[str, float]:
    """Time and peak memory of one way, in a process of its own; imports are not timed."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--child", what, "--root", str(root)]
    done = subprocess.run(
        command, env={**os.environ, "BEVKD_INDEX_CACHE": str(cache)}, check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_rss_mb() -> float:
    """Peak memory of this process; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def child(what: str, root: Path) -> dict[str, float]:
    """What a child process measures."""
    if what == "devkit":
        import nuscenes.nuscenes  # noqa: F401  imported before the clock starts
    else:
        import bevkd_deploy.data.source  # noqa: F401
    before_mb = peak_rss_mb()
    start = time.perf_counter()
    samples = (open_with_devkit if what == "devkit" else open_with_bevkd)(root)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_rss_mb(), "import_mb": before_mb, "samples": samples}


def measure(scenes: int, rounds: int) -> dict[str, Any]:
    """Interleaved rounds of devkit, cold and warm."""
    with tempfile.TemporaryDirectory() as temporary:
        root, cache = Path(temporary) / "tables", Path(temporary) / "cache"
        rows = write_tables(root, scenes, 40, 35)
        megabytes = sum(path.stat().st_size for path in (root / VERSION).iterdir()) / 1e6
        found: dict[str, list[dict[str, float]]] = {"devkit": [], "cold": [], "warm": []}
        for _ in range(rounds):
            for path in cache.glob("*.npz"):
                path.unlink()
            for name in found:
                found[name].append(run_child("devkit" if name == "devkit" else "bevkd", root, cache))
        index_mb = sum(path.stat().st_size for path in cache.iterdir()) / 1e6
    medians = {
        name: {key: round(statistics.median(row[key] for row in runs), 2) for key in runs[0]}
        for name, runs in found.items()
    }
    return {
        "environment": collect_environment(),
        "rows": rows,
        "tables_mb": round(megabytes, 1),
        "index_mb": round(index_mb, 1),
        "sweeps": SWEEPS,
        "median": medians,
        "ratio_devkit_to": {
            name: {key: round(medians["devkit"][key] / medians[name][key], 2) for key in ("seconds", "peak_mb")}
            for name in ("cold", "warm")
        },
        "rounds": found,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.root)))  # noqa: T201  read by the parent
    else:
        print(write_json(HERE / "index.json", measure(given.scenes, given.rounds)))  # noqa: T201  a script
