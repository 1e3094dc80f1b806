"""Frames a second that one core writes of the synthetic world.

python benchmarks/synthetic/speed.py

A frame is a keyframe with its six JPEGs, its LiDAR turn and its share of the sweeps, of the tables and of the scene's
preparation. Each profile writes one scene several times; the best run counts, because other work on the machine can
only slow it down. Writes speed.json beside this file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.data.synthetic import PROFILES, Profile, write_dataset
from bevkd_deploy.data.synthetic.dataset import JPEG_QUALITY

HERE = Path(__file__).resolve().parent
DIFFICULTIES = ("normal", "hard")


def measure(profile: Profile, difficulty: str, rounds: int) -> dict[str, Any]:
    """Seconds of each round for one scene, wall and processor time, and frames a second of the best."""
    wall, processor, size = [], [], 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            start, start_processor = time.perf_counter(), time.process_time()
            root = write_dataset(
                Path(folder) / "world", profile=profile, difficulty=difficulty, train_scenes=1, val_scenes=0, seed=0
            )
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
            size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return {
        "frames": profile.keyframes,
        "image_hw_px": profile.image_hw_px,
        "lidar_columns": profile.azimuth_steps,
        "sweeps_between": profile.sweeps_between,
        "megabytes": round(size / 1e6, 1),
        "wall_s": [round(value, 3) for value in wall],
        "processor_s": [round(value, 3) for value in processor],
        "frames_per_s": round(profile.keyframes / min(wall), 1),
        "frames_per_processor_s": round(profile.keyframes / min(processor), 1),
    }


def encoding_ms(profile: Profile, rounds: int) -> float:
    """Milliseconds to encode six pictures like those of the profile: what no generator can go below."""
    height, width = profile.image_hw_px
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    image = np.clip(120 + 60 * np.sin(np.arange(width) / 40)[:, None] + noise, 0, 255).astype(np.uint8)
    best = float("inf")
    for _ in range(4 * rounds):
        start = time.perf_counter()
        for _ in range(6):
            cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        best = min(best, time.perf_counter() - start)
    return round(1e3 * best, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    profiles = [PROFILES["quickstart"], PROFILES["standard"]]
    result = {
        profile.name: {
            **{difficulty: measure(profile, difficulty, given.rounds) for difficulty in DIFFICULTIES},
            "jpeg_ms_per_frame": encoding_ms(profile, given.rounds),
        }
        for profile in profiles
    }
    write_json(HERE / "speed.json", {"environment": collect_environment(), "profiles": result})
