"""Voxels against mmcv's hard voxelization: the same voxels, points and counts in the same order."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.voxels import Voxelization

KEYFRAME = Path(__file__).resolve().parents[2] / "../shared/data/nuscenes_keyframe"


def keyframe() -> Tensor:
    if not KEYFRAME.is_dir():
        pytest.skip("the real nuScenes keyframe is not on this machine")
    (path,) = KEYFRAME.glob("*.bin")
    return torch.from_numpy(np.fromfile(path, dtype=np.float32).reshape(-1, 5))


def crowded() -> Tensor:
    """270 000 points, as ten turns have, close around the vehicle: voxels and their points overflow."""
    generator = torch.Generator().manual_seed(0)
    xyz = torch.randn(270_000, 3, generator=generator) * torch.tensor([9.0, 9.0, 1.0]) - torch.tensor([0.0, 0.0, 1.0])
    xyz[::5] *= 0.03
    return torch.cat([xyz, torch.rand(270_000, 2, generator=generator) * 255], dim=1)


def on_edges() -> Tensor:
    """Points on corners of voxels as float32 has them, those of the range's edges among them, and close beside."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(-3, 1444, (60_000, 3), generator=generator)
    cells[:, 2] = cells[:, 2] % 46 - 3
    cells[::7, 0], cells[1::7, 1], cells[2::7, 2], cells[3::7, 0] = 0, 1440, 40, 1440
    xyz = cells * torch.tensor([0.075, 0.075, 0.2]) - torch.tensor([54.0, 54.0, 5.0])
    xyz[::3] = torch.nextafter(xyz[::3], torch.tensor(torch.inf))
    xyz[1::3] = torch.nextafter(xyz[1::3], torch.tensor(-torch.inf))
    return torch.cat([xyz, torch.rand(len(xyz), 2, generator=generator)], dim=1)


def nothing() -> Tensor:
    return torch.zeros(0, 5)


CLOUDS = {make.__name__: make for make in (keyframe, crowded, on_edges, nothing)}


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(("max_points", "max_voxels"), [(10, 160_000), (2, 5_000)])
def test_voxels_are_those_of_mmcv(mmdet3d: ModuleType, name: str, max_points: int, max_voxels: int) -> None:
    from mmcv.ops import Voxelization as MmcvVoxelization

    points = CLOUDS[name]()
    geometry = BevFusionGeometry(max_points=max_points, max_voxels=max_voxels)
    layer = MmcvVoxelization(
        list(geometry.voxel_size_m), list(geometry.range_m), max_points, max_voxels, deterministic=True
    )
    expected = layer.eval()(points)
    ours = Voxelization(geometry)(points[None], torch.tensor([len(points)]))
    assert torch.equal(ours.points, expected[0])
    assert torch.equal(ours.coordinates.flip(1).int(), expected[1])  # mmcv's are z, y, x
    assert torch.equal(ours.counts.int(), expected[2])
    if name in ("crowded", "keyframe"):
        assert int(ours.counts.max()) == max_points
        if max_voxels == 5_000:
            assert len(ours.counts) == max_voxels


def test_a_batch_is_its_frames_one_after_the_other(mmdet3d: ModuleType) -> None:
    from mmcv.ops import Voxelization as MmcvVoxelization

    clouds = [crowded(), nothing(), on_edges()]
    geometry = BevFusionGeometry(max_voxels=20_000)
    layer = MmcvVoxelization(list(geometry.voxel_size_m), list(geometry.range_m), 10, 20_000, deterministic=True).eval()
    points = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True)
    ours = Voxelization(geometry)(points, torch.tensor([len(cloud) for cloud in clouds]))
    for frame, cloud in enumerate(clouds):
        expected = layer(cloud)
        rows = ours.frame == frame
        assert torch.equal(ours.points[rows], expected[0])
        assert torch.equal(ours.coordinates[rows].flip(1).int(), expected[1])


def test_the_mean_is_that_of_mmdet3d(mmdet3d: ModuleType) -> None:
    from mmdet3d.models.voxel_encoders import HardSimpleVFE

    points = keyframe()
    voxels = Voxelization(BevFusionGeometry())(points[None], torch.tensor([len(points)]))
    expected = HardSimpleVFE(num_features=5)(voxels.points, voxels.counts, voxels.frame_coordinates())
    assert torch.equal(voxels.mean(), expected)
