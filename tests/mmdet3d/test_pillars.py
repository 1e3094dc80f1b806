"""Pillars against mmcv's hard voxelization: the same pillars with the same points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import BevConfig, CameraConfig, HeadConfig, LidarConfig, ModelConfig
from bevkd_deploy.data.sensor_files import load_points
from bevkd_deploy.geometry.pillars import voxelize

KEYFRAME = Path(__file__).resolve().parents[2] / "../shared/data/nuscenes_keyframe"
RANGE_M = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


def spec_of(size_m: float, max_pillars: int, max_points: int) -> GraphSpec:
    return ModelConfig(
        camera=CameraConfig(image_size_px=(64, 128)),
        lidar=LidarConfig(range_m=RANGE_M, pillar_size_m=size_m, max_pillars=max_pillars, max_points=max_points),
        bev=BevConfig(block_channels=(8, 8), block_layers=(1, 1)),
        head=HeadConfig(),
    ).graph_spec(("CAM_FRONT",))


def dense_cloud() -> np.ndarray[Any, Any]:
    """270 000 points, as ten turns have, crowded around the vehicle, some out of range."""
    rng = np.random.default_rng(0)
    radius = rng.gamma(2.0, 9.0, 270_000)
    angle = rng.uniform(-np.pi, np.pi, len(radius))
    columns = [radius * np.cos(angle), radius * np.sin(angle), rng.normal(-1, 1, len(radius)),
               rng.uniform(0, 255, len(radius)), rng.integers(0, 10, len(radius)) * 0.05]  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float32)


def keyframe() -> np.ndarray[Any, Any]:
    if not KEYFRAME.is_dir():
        pytest.skip("the real nuScenes keyframe is not on this machine")
    (path,) = KEYFRAME.glob("*.bin")
    return load_points(path)


@pytest.mark.parametrize("cloud", [keyframe, dense_cloud])
@pytest.mark.parametrize(
    ("size_m", "max_pillars", "max_points"),
    [(0.2, 100_000, 10), (0.2, 20_000, 10), (0.4, 100_000, 32), (0.1, 3_000, 5)],
)
def test_pillars_are_those_of_mmcv(
    mmdet3d: ModuleType, cloud: Callable[[], np.ndarray[Any, Any]], size_m: float, max_pillars: int, max_points: int
) -> None:
    import torch
    from mmcv.ops import Voxelization

    points, spec = cloud(), spec_of(size_m, max_pillars, max_points)
    height_m = RANGE_M[5] - RANGE_M[2]
    layer = Voxelization([size_m, size_m, height_m], list(RANGE_M), max_points, max_pillars, deterministic=True)
    layer.eval()
    voxels, coordinates, counts = (part.numpy() for part in layer(torch.from_numpy(points)))
    ours = voxelize(points, spec)
    columns = spec.pillar_shape_yx[1]
    cells = coordinates[:, 1] * columns + coordinates[:, 2]  # mmcv's coordinates are (z, y, x)
    # Not only as a set: pillars come in order of first arrival, points in theirs.
    np.testing.assert_array_equal(ours.pillar_index[: ours.kept_pillars], cells)
    np.testing.assert_array_equal(ours.pillar_count[: ours.kept_pillars], counts)
    np.testing.assert_array_equal(ours.pillars[: ours.kept_pillars], voxels)
    assert ours.kept_pillars > 2000
