"""One annotated keyframe, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.data.events import DroppedSensor, OnError
from bevkd_deploy.geometry.calibration import Calibration


@dataclass(frozen=True, eq=False)
class Sweep:
    """One earlier LiDAR turn.

    Attributes:
        path: float32 rows of 5, as the keyframe's.
        sweep2lidar: [4, 4] from this turn's LiDAR frame to the keyframe's, ego motion included.
        time_lag_s: how much older than the keyframe it is, seconds.
    """

    path: Path
    sweep2lidar: NDArray[np.float64]
    time_lag_s: float


@dataclass(frozen=True, eq=False)
class GlobalBoxes:
    """n boxes as the nuScenes tables and submissions hold them: global frame, full rotation, geometric centre.

    Attributes:
        translation_m: [n, 3].
        size_m: [n, 3] width, length, height.
        rotation_wxyz: [n, 4].
        velocity_mps: [n, 2], NaN where unknown.
    """

    translation_m: NDArray[np.float64]
    size_m: NDArray[np.float64]
    rotation_wxyz: NDArray[np.float64]
    velocity_mps: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.translation_m)


@dataclass(frozen=True, eq=False)
class Sample:
    """Paths, poses and annotations of a keyframe; sensors are read when needed.

    Attributes:
        token: nuScenes sample token.
        scene: scene or log name; frames of one scene are correlated.
        timestamp_s: of the LiDAR sweep, seconds.
        image_paths: per camera; a camera that is not in it is missing in this frame.
        points_path: LiDAR sweep, float32 rows of 5; None where the LiDAR is missing in this frame.
        calibration: the cameras of `image_paths`, raw pixels.
        lidar2ego: [4, 4].
        ego2global: [4, 4] at the LiDAR's time.
        boxes: float64 [N, 9], lidar frame; velocity NaN where unknown.
        labels: int64 [N], index into CLASS_NAMES; only detection classes are kept.
        num_points: int64 [N], LiDAR plus radar points inside.
        attributes: nuScenes attribute name per box, '' where there is none.
        sweeps: earlier LiDAR turns, newest first, whose points are added to the keyframe's.
        annotations: the boxes as annotated, row by row those of `boxes`; None where the source has only LiDAR-frame
            boxes.
        bike_racks: where parked cycles are not evaluated; None where the source does not tell.
        on_error: what to do where a sensor file turns out to be missing or broken when it is read.
        dropped: sensors that were asked for and that the frame goes without since it was opened.
    """

    token: str
    scene: str
    timestamp_s: float
    image_paths: Mapping[str, Path]
    points_path: Path | None
    calibration: Calibration
    lidar2ego: NDArray[np.float64]
    ego2global: NDArray[np.float64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    num_points: NDArray[np.int64]
    attributes: tuple[str, ...]
    sweeps: tuple[Sweep, ...] = ()
    annotations: GlobalBoxes | None = None
    bike_racks: GlobalBoxes | None = None
    on_error: OnError = "fail"
    dropped: tuple[DroppedSensor, ...] = ()

    @property
    def lidar2global(self) -> NDArray[np.float64]:
        """[4, 4]."""
        return self.ego2global @ self.lidar2ego
