"""The sensors' places on the vehicle, close to those of nuScenes, slightly different for every vehicle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.data.synthetic.portable import cos_sin, product
from bevkd_deploy.data.synthetic.profiles import Profile

Array = NDArray[np.float64]

#: Yaw (degrees), position in the ego frame (metres), focal length and principal point (pixels at 1600x900).
_CAMERAS: dict[str, tuple[float, tuple[float, float, float], float, tuple[float, float]]] = {
    "CAM_FRONT": (0.0, (1.70, 0.02, 1.51), 1266.4, (816.3, 491.5)),
    "CAM_FRONT_RIGHT": (-55.0, (1.55, -0.49, 1.50), 1260.8, (807.9, 495.3)),
    "CAM_FRONT_LEFT": (55.0, (1.52, 0.49, 1.51), 1272.6, (826.6, 479.8)),
    "CAM_BACK": (180.0, (0.03, 0.00, 1.58), 809.2, (829.2, 481.8)),
    "CAM_BACK_LEFT": (110.0, (1.04, 0.48, 1.56), 1256.7, (792.1, 492.8)),
    "CAM_BACK_RIGHT": (-110.0, (1.01, -0.48, 1.56), 1259.5, (807.3, 501.2)),
}
_LIDAR_POSITION_M = (0.94, 0.0, 1.84)
_LIDAR_YAW_DEG = -90.0

#: Camera axes (x right, y down, z forward) in a frame with x forward, y left, z up.
_CAM_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])

_ANGLE_SPREAD_RAD = 0.006
_POSITION_SPREAD_M = 0.01


@dataclass(frozen=True)
class Camera:
    """One camera: cam2ego [4, 4], cam2img [3, 3] in pixels of an image of size_hw_px."""

    name: str
    cam2ego: Array
    cam2img: Array
    size_hw_px: tuple[int, int]


@dataclass(frozen=True)
class Rig:
    """All sensors of one vehicle."""

    lidar2ego: Array
    cameras: tuple[Camera, ...]


def make_rig(profile: Profile, rng: np.random.Generator) -> Rig:
    """A vehicle's sensors with small mounting differences."""
    lidar2ego = _mount(_LIDAR_YAW_DEG, _LIDAR_POSITION_M, rng)
    scale = profile.image_scale
    cameras = []
    for name in CAMERA_NAMES:
        yaw_deg, position, focal, (center_x, center_y) = _CAMERAS[name]
        cam2ego = _mount(yaw_deg, position, rng)
        cam2ego[:3, :3] = product(cam2ego[:3, :3], _CAM_AXES)
        cam2img = np.array([[focal * scale, 0, center_x * scale], [0, focal * scale, center_y * scale], [0, 0, 1.0]])
        cameras.append(Camera(name, cam2ego, cam2img, profile.image_hw_px))
    return Rig(lidar2ego, tuple(cameras))


def _mount(yaw_deg: float, position: tuple[float, float, float], rng: np.random.Generator) -> Array:
    """Sensor-to-ego matrix of a sensor with x forward, turned by yaw, then by small random angles."""
    angles = np.radians([yaw_deg, 0, 0]) + rng.normal(0, _ANGLE_SPREAD_RAD, 3)
    (yaw_c, pitch_c, roll_c), (yaw_s, pitch_s, roll_s) = cos_sin(angles)
    turn = np.array([[yaw_c, -yaw_s, 0], [yaw_s, yaw_c, 0], [0, 0, 1]])
    tilt = np.array([[pitch_c, 0, pitch_s], [0, 1, 0], [-pitch_s, 0, pitch_c]])
    lean = np.array([[1, 0, 0], [0, roll_c, -roll_s], [0, roll_s, roll_c]])
    matrix = np.eye(4)
    matrix[:3, :3] = product(product(turn, tilt), lean)
    matrix[:3, 3] = np.asarray(position) + rng.normal(0, _POSITION_SPREAD_M, 3)
    return matrix
