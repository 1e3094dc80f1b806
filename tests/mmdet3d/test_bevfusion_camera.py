"""BEVFusion's camera branch against mmdet's and mmdet3d's own modules, with our weights in them.

The project is no part of mmdet3d's package: BEVFUSION_PROJECT names a checkout's projects/BEVFusion, else what needs it
skips. Its pooling operator is for CUDA alone; a plain indexed sum stands in for it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.depth_lss import DepthLSSTransform, depth_map
from bevkd_deploy.models.bevfusion.image_neck import GeneralizedLSSFPN
from bevkd_deploy.models.bevfusion.swin import SwinTransformer
from bevkd_deploy.models.resnet import ResNet

#: Images of 64 by 176, a grid that is no square.
GEOMETRY = BevFusionGeometry(image_size_px=(64, 176), range_m=(-21.6, -14.4, -5.0, 21.6, 14.4, 3.0))


def randomised(module: nn.Module) -> nn.Module:
    """Weights and batch norm statistics that make every part of a module matter."""
    generator = torch.Generator().manual_seed(0)
    constants = ("dx", "bx", "frustum")
    for name, value in module.state_dict().items():
        if not value.is_floating_point() or name in constants:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(1 + 0.1 * noise.abs())
        elif value.dim() == 1:
            value.copy_(0.1 * noise + float(name.endswith("weight")))
        else:
            value.copy_(noise * 1.4 / value[0].numel() ** 0.5)
    return module.eval()


def with_weights_of(ours: nn.Module, theirs: Any) -> Any:
    """Their module with our state dict, which has their keys in their order."""
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.eval()  # mmdet's backbones return nothing here
    return theirs


def assert_same_maps(ours: list[Tensor], theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (61, 90), (256, 704)])
def test_swin_is_mmdets(mmdet3d: ModuleType, size: tuple[int, int]) -> None:
    from mmdet.models.backbones import SwinTransformer as MmdetSwin

    ours = randomised(SwinTransformer())
    theirs = with_weights_of(ours, MmdetSwin(out_indices=(1, 2, 3)))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_same_maps(ours(images), theirs(images))


def test_constants_of_swin_are_mmdets(mmdet3d: ModuleType) -> None:
    from mmdet.models.backbones import SwinTransformer as MmdetSwin

    ours, theirs = SwinTransformer().state_dict(), MmdetSwin(out_indices=(1, 2, 3)).state_dict()
    indices = [key for key in ours if key.endswith("relative_position_index")]
    assert len(indices) == 12
    assert all(torch.equal(ours[key], theirs[key]) for key in indices)


def test_resnet50_is_mmdets(mmdet3d: ModuleType) -> None:
    from mmdet.models.backbones import ResNet as MmdetResNet

    ours = randomised(ResNet("resnet50", 64, 8))
    theirs = with_weights_of(ours, MmdetResNet(depth=50, out_indices=(1, 2, 3), style="pytorch"))
    images = torch.randn(2, 3, 70, 100, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Which of a pixel's points an indexed assignment keeps depends on the threads; with one, it is the last."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def project(mmdet3d: ModuleType) -> Iterator[str]:
    """Name of a package of the project's files, whose operators are stand-ins: the real ones need a CUDA compiler."""
    folder = os.environ.get("BEVFUSION_PROJECT")
    if folder is None:
        pytest.skip("BEVFUSION_PROJECT names no checkout of mmdetection3d/projects/BEVFusion")
    name = "bevfusion_camera_project"
    package, operators = ModuleType(name), ModuleType(f"{name}.ops")
    package.__path__ = [os.path.join(folder, "bevfusion")]
    operators.bev_pool = indexed_sum  # type: ignore[attr-defined]
    sys.modules.update({name: package, operators.__name__: operators})
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def indexed_sum(features: Tensor, cells: Tensor, batch: int, depth: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows of features, summed by (x, y, z, sample) -> [B, C, Z, X, Y]."""
    shape = (batch, int(depth), int(rows), int(columns), features.shape[1])
    flat = ((cells[:, 3] * shape[1] + cells[:, 2]) * shape[2] + cells[:, 0]) * shape[3] + cells[:, 1]
    pooled = features.new_zeros(shape).flatten(0, 3).index_add(0, flat, features)
    return pooled.view(shape).permute(0, 4, 1, 2, 3)


def their_class(project: str, file: str, name: str) -> Any:
    from mmdet3d.registry import MODELS

    if name in MODELS.module_dict:  # another test may have registered the project's own
        return MODELS.module_dict[name]
    return getattr(importlib.import_module(f"{project}.{file}"), name)


def test_the_neck_is_the_projects(project: str) -> None:
    ours = randomised(GeneralizedLSSFPN([12, 24, 48], 16))
    theirs = their_class(project, "bevfusion_necks", "GeneralizedLSSFPN")(
        [12, 24, 48], 16, 3, upsample_cfg={"mode": "bilinear", "align_corners": False}
    )
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 12 * 2**i, 16 // 2**i, 22 // 2**i, generator=generator) for i in range(3)]
    with torch.no_grad():
        assert_same_maps(ours(maps), with_weights_of(ours, theirs)(maps))


def their_transform(project: str, geometry: BevFusionGeometry) -> Any:
    x0, y0, _, x1, y1, _ = geometry.range_m
    cell, (z0, z1) = geometry.camera_cell_m, geometry.camera_z_m
    height, width = geometry.image_size_px
    bounds = [x0, x1, cell], [y0, y1, cell], [z0, z1, z1 - z0], [*geometry.depth_m, geometry.depth_step_m]
    feature_size = [height // geometry.feature_stride, width // geometry.feature_stride]
    theirs = their_class(project, "depth_lss", "DepthLSSTransform")
    return theirs(16, 8, [height, width], feature_size, *bounds, downsample=geometry.camera_downsample)


def rig(samples: int) -> dict[str, Tensor]:
    """Four cameras all around, a cloud, images cropped and turned, the world turned, scaled, moved and mirrored."""
    rng = np.random.default_rng(2)
    cameras = []
    for degrees in (2.0, 93.0, 178.0, 271.0):
        angle = np.radians(degrees)
        forward, left = np.array([np.cos(angle), np.sin(angle), 0]), np.array([-np.sin(angle), np.cos(angle), 0])
        cam2lidar = np.eye(4)
        cam2lidar[:3, :3] = np.stack([-left, [0, 0, -1], forward], axis=1)
        cam2lidar[:3, 3] = 0.7 * forward + [0, 0, -0.4]
        cameras.append(cam2lidar)
    cam2img = np.eye(4)
    cam2img[:2, :3] = [[310.0, 0, 205.0], [0, 312.0, 118.0]]
    img_aug, turn = np.eye(4), np.radians(4.0)
    img_aug[:2, :2] = 0.45 * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    img_aug[:2, 3] = -7.0, -21.0
    lidar_aug, turn = np.eye(4), np.radians(-20.0)
    lidar_aug[:3, :3] = np.diag([1.05, -1.05, 1.05])
    lidar_aug[:2, :2] = lidar_aug[:2, :2] @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    lidar_aug[:3, 3] = 0.4, -0.7, 0.2
    clouds = rng.uniform([-20, -20, -2, 0, 0], [20, 20, 2, 255, 0.5], (samples, 4000, 5))
    clouds[..., :3] = clouds[..., :3] @ lidar_aug[:3, :3].T + lidar_aug[:3, 3]
    arrays = {
        "points": clouds,
        "lidar2img": np.stack([[cam2img @ np.linalg.inv(m) for m in cameras]] * samples),
        "cam2img": np.stack([[cam2img] * len(cameras)] * samples),
        "cam2lidar": np.stack([cameras] * samples),
        "img_aug": np.stack([[img_aug] * len(cameras)] * samples),
        "lidar_aug": np.stack([lidar_aug] * samples),
    }
    given = {name: torch.from_numpy(np.ascontiguousarray(array)).float() for name, array in arrays.items()}
    return {**given, "point_count": torch.tensor([4000, 2500][:samples])}


def test_the_view_transform_is_the_projects(project: str, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = randomised(DepthLSSTransform(GEOMETRY, 16, 8))
    theirs = their_transform(project, GEOMETRY)
    for constant in ("dx", "bx", "nx", "frustum"):
        assert torch.equal(ours.state_dict()[constant], theirs.state_dict()[constant])
    theirs = with_weights_of(ours, theirs)
    given = rig(2)
    features = torch.randn(2, 4, 16, 8, 22, generator=torch.Generator().manual_seed(1))
    depths: list[Tensor] = []
    lift = theirs.get_cam_feats
    monkeypatch.setattr(theirs, "get_cam_feats", lambda x, depth: (depths.append(depth), lift(x, depth))[1])
    # They write into the points they are given.
    clouds = [cloud[:count].clone() for cloud, count in zip(given["points"], given["point_count"], strict=True)]
    names = ("lidar2img", "cam2img", "cam2lidar", "img_aug", "lidar_aug")
    with torch.no_grad():
        expected = theirs(features, clouds, *(given[name] for name in names), None)
        bev = ours(features, **given)
        seen = depth_map(*(given[k] for k in ("points", "point_count", "lidar2img", "img_aug", "lidar_aug")), (64, 176))
    assert (seen > 0).sum() > 1000
    torch.testing.assert_close(seen[:, :, None], depths[0], rtol=0, atol=1e-6)
    assert bev.shape == (2, 8, 72, 48)
    torch.testing.assert_close(bev, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
