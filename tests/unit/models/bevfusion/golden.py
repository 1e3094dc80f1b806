"""Closed-form weights and the real keyframe as network inputs: how the numbers of golden_taps.json were made.

Those numbers are mmdet3d's own (open-mmlab/mmdetection3d@fe25f7a, projects/BEVFusion, camera+LiDAR configuration; eval
mode, float32, CPU, one thread, spconv 2.3.8, a plain index-add BEV pool).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.data.safe_pickle import load_pickle

#: Keys that keep the values they are constructed with.
CONSTANT_ENDINGS = ("frustum", "dx", "bx", "nx", "relative_position_index", "num_batches_tracked")

#: Raw 1600 x 900 images are resized by 0.48, then cropped: left, top, width, height.
SCALE = 0.48
CROP = (32, 176, 704, 256)


def closed_form_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the same keys and shapes whose values follow from the keys alone."""
    filled = {}
    for key, value in state.items():
        if not value.is_floating_point() or key.endswith(CONSTANT_ENDINGS):
            filled[key] = value
            continue
        random = np.random.RandomState(zlib.crc32(key.encode()) % 2**31)
        z = random.randn(*value.shape).astype(np.float32) if value.dim() else np.float32(1.0)
        filled[key] = torch.from_numpy(np.asarray(_values(key, z), dtype=np.float32))
    return filled


def _values(key: str, z: np.ndarray) -> np.ndarray:
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(z)
    if key.endswith("running_mean"):
        return 0.1 * z
    if key.endswith("bias"):
        return 0.05 * z
    if z.ndim == 1:
        return 1 + 0.1 * z
    fan = z.size / z.shape[-1] if z.ndim == 5 else z.size / z.shape[0]  # 5-d: sparse, as the numbers were made
    return z * (1.4 / np.sqrt(fan))


def keyframe_inputs(root: Path) -> dict[str, Tensor]:
    """The keyframe as a batch of one under the sensor contract; the fifth column of its points is the ring."""
    (path,) = root.glob("*.pkl")
    frame = load_pickle(path)["data_list"][0]
    (cloud,) = root.glob("*.bin")
    points = torch.from_numpy(np.fromfile(cloud, dtype=np.float32).reshape(-1, 5))
    images, lidar2img, cam2img, cam2lidar = [], [], [], []
    left, top, width, height = CROP
    for camera in CAMERA_NAMES:
        info = frame["images"][camera]
        raw = cv2.imread(str(root / info["img_path"]))
        size = (round(raw.shape[1] * SCALE), round(raw.shape[0] * SCALE))
        small = cv2.resize(raw, size, interpolation=cv2.INTER_LINEAR)
        images.append(torch.from_numpy(small[top : top + height, left : left + width, ::-1].copy()))
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = np.array(info["cam2img"])[:3, :3]
        lidar2cam = np.array(info["lidar2cam"])
        cam2img.append(intrinsics)
        lidar2img.append(intrinsics @ lidar2cam)
        cam2lidar.append(np.linalg.inv(lidar2cam))
    img_aug = np.diag([SCALE, SCALE, 1.0, 1.0])
    img_aug[:2, 3] = -left, -top
    matrices = {
        "lidar2img": np.stack(lidar2img),
        "cam2img": np.stack(cam2img),
        "cam2lidar": np.stack(cam2lidar),
        "img_aug": np.stack([img_aug] * len(CAMERA_NAMES)),
        "lidar_aug": np.eye(4),
    }
    return {
        "images": torch.stack(images)[None],
        "points": points[None],
        "point_count": torch.tensor([len(points)]),
        **{name: torch.from_numpy(value).float()[None] for name, value in matrices.items()},
    }
