"""A small dataset in the nuScenes layout with any cameras: names, number, sizes and order are the caller's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bevkd_deploy.geometry.frames import matrix_to_quaternion

VERSION = "v1.0-trainval"
SAMPLES_PER_SCENE = 2

#: Camera axes (x right, y down, z forward) in a frame with x forward, y left, z up.
_CAM_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def write_rig_world(root: Path, cameras: dict[str, tuple[int, int]]) -> Path:
    """Write a train and a val scene of two keyframes each, with one LiDAR sweep before every keyframe.

    Args:
        root: dataset folder.
        cameras: (height, width) of each camera; they look around evenly, in the order given.
    """
    rng = np.random.default_rng(len(cameras))
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("scene", "sample", "sample_data", "ego_pose",
        "calibrated_sensor", "sensor", "sample_annotation")}  # fmt: skip
    tables["category"] = [{"token": "car", "name": "vehicle.car"}]
    tables["attribute"] = [{"token": "moving", "name": "vehicle.moving"}]
    tables["instance"] = [{"token": f"i{n}", "category_token": "car"} for n in range(3)]
    for number, channel in enumerate(("LIDAR_TOP", *cameras)):
        yaw = 2 * np.pi * max(0, number - 1) / len(cameras)
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        rotation = np.eye(3) if channel == "LIDAR_TOP" else turn @ _CAM_AXES
        height, width = cameras.get(channel, (0, 0))
        intrinsic = [[width * 0.6, 0, width / 2], [0, width * 0.6, height / 2], [0, 0, 1]]
        tables["sensor"].append({"token": f"s-{channel}", "channel": channel})
        tables["calibrated_sensor"].append(
            {
                "token": f"c-{channel}",
                "sensor_token": f"s-{channel}",
                "translation": [0.1 * number, 0.0, 1.6],
                "rotation": matrix_to_quaternion(rotation).tolist(),
                "camera_intrinsic": [] if channel == "LIDAR_TOP" else intrinsic,
            }
        )
    for scene in ("train", "val"):
        tables["scene"].append({"token": scene, "name": scene})
        turns: list[str] = []
        for number in range(SAMPLES_PER_SCENE):
            _add_sample(root, tables, rng, f"{scene}{number}", scene, turns, cameras)
    (root / VERSION).mkdir(parents=True)
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    (root / "splits.json").write_text(json.dumps({"train": ["train"], "val": ["val"]}))
    return root


def _add_sample(
    root: Path,
    tables: dict[str, list[dict[str, Any]]],
    rng: np.random.Generator,
    token: str,
    scene: str,
    turns: list[str],
    cameras: dict[str, tuple[int, int]],
) -> None:
    time_us = 1_000_000 + 500_000 * (len(turns) // 2)
    tables["sample"].append({"token": token, "scene_token": scene, "timestamp": time_us})
    for is_key_frame in (False, True):
        name = f"{'samples' if is_key_frame else 'sweeps'}/LIDAR_TOP/log__LIDAR_TOP__{scene}{len(turns)}.pcd.bin"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        points = rng.uniform(-15, 15, (800, 5)).astype(np.float32)
        points[:, 2] /= 10
        points.tofile(root / name)
        row = f"{token}-LIDAR_TOP-{int(is_key_frame)}"
        when = time_us - (0 if is_key_frame else 50_000)
        _add_data(tables, row, token, "LIDAR_TOP", name, when, is_key_frame, (0, 0), turns[-1] if turns else "")
        turns.append(row)
    for camera, size in cameras.items():
        name = f"samples/{camera}/log__{camera}__{token}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        _add_data(tables, f"{token}-{camera}", token, camera, name, time_us, True, size, "")
    for number in range(3):
        tables["sample_annotation"].append(
            {
                "token": f"{token}-a{number}",
                "sample_token": token,
                "instance_token": f"i{number}",
                "attribute_tokens": ["moving"],
                "translation": [4.0 * number - 5, 3.0 * number - 2, 1.0],
                "size": [1.9, 4.5, 1.6],
                "rotation": [1.0, 0.0, 0.0, 0.1 * number],
                "prev": "",
                "next": "",
                "num_lidar_pts": 5 + number,
                "num_radar_pts": 0,
            }
        )


def _add_data(
    tables: dict[str, list[dict[str, Any]]],
    token: str,
    sample: str,
    channel: str,
    name: str,
    time_us: int,
    is_key_frame: bool,
    size: tuple[int, int],
    prev: str,
) -> None:
    tables["ego_pose"].append(
        {"token": f"p-{token}", "translation": [time_us / 1e6, 0.0, 0.0], "rotation": [1.0, 0.0, 0.0, 0.05]}
    )
    tables["sample_data"].append(
        {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": f"p-{token}",
            "calibrated_sensor_token": f"c-{channel}",
            "timestamp": time_us,
            "is_key_frame": is_key_frame,
            "height": size[0],
            "width": size[1],
            "filename": name,
            "prev": prev,
        }
    )
