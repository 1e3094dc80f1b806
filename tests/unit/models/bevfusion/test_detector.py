"""The assembled network on a small grid that is no square: inputs, axes, and the LiDAR-alone network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.detector import BevFusion
from bevkd_deploy.teachers.frozen import FrozenTeacher

#: 24 cells of 2 m along x, 16 along y.
GEOMETRY = BevFusionGeometry(
    range_m=(-24.0, -16.0, -5.0, 24.0, 16.0, 3.0),
    voxel_size_m=(0.25, 0.25, 0.2),
    camera_cell_m=1.0,
    image_size_px=(64, 96),
    proposals=20,
)
CAMERAS = ("CAM_FRONT", "CAM_BACK")


def inputs(batch: int = 1) -> dict[str, Tensor]:
    """A cluster of points at (17, -11) m and two cameras that look along +x and -x."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch, 200, 5, generator=generator) * torch.tensor([1.0, 1.0, 1.0, 255.0, 0.5])
    points[..., :3] += torch.tensor([17.0, -11.0, -1.0])
    # Camera axes (x right, y down, z forward) in the lidar frame, for yaw 0 and pi.
    forward = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    turned = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])) @ forward
    cam2lidar = torch.stack([forward, turned])
    cam2img = torch.eye(4).repeat(2, 1, 1)
    cam2img[:, :2, :3] = torch.tensor([[60.0, 0, 48], [0, 60, 32]])
    matrices = {
        "lidar2img": cam2img @ torch.linalg.inv(cam2lidar),
        "cam2img": cam2img,
        "cam2lidar": cam2lidar,
        "img_aug": torch.eye(4).repeat(2, 1, 1),
        "lidar_aug": torch.eye(4),
    }
    images = torch.randint(0, 256, (batch, 2, 64, 96, 3), dtype=torch.uint8, generator=generator)
    repeated = {name: value.repeat(batch, *[1] * value.dim()) for name, value in matrices.items()}
    return {"images": images, "points": points, "point_count": torch.full((batch,), 200), **repeated}


@pytest.fixture(scope="module")
def fusion() -> BevFusion:
    torch.manual_seed(0)
    return BevFusion(GEOMETRY, "swin_t", cameras=CAMERAS).eval()


@pytest.fixture(scope="module")
def lidar() -> BevFusion:
    torch.manual_seed(0)
    return BevFusion(GEOMETRY, None).eval()


def test_it_returns_what_the_teacher_contract_says(fusion: BevFusion) -> None:
    with torch.no_grad():
        maps = fusion(**inputs(batch=2))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "heatmap": (2, 10, 24, 16),
        "boxes": (2, 20, 9),
        "scores": (2, 20),
        "labels": (2, 20),
    }
    assert maps["labels"].dtype == torch.int64
    spec = fusion.spec
    assert (spec.axis_order, spec.bev_shape_yx, spec.bev_cell_m, spec.top_k) == ("xy", (16, 24), 2.0, 20)
    assert (spec.cameras, spec.image_height_px, spec.image_width_px) == (CAMERAS, 64, 96)


@pytest.mark.parametrize("camera", ["swin_t", "resnet50"])
def test_a_batch_is_its_frames(camera: Any) -> None:
    torch.manual_seed(0)
    network = BevFusion(GEOMETRY, camera, cameras=CAMERAS).eval()
    both = inputs(batch=2)
    with torch.no_grad():
        heatmap = network(**both)["heatmap"]
        for index in range(2):
            alone = network(**{name: value[index : index + 1] for name, value in both.items()})["heatmap"]
            torch.testing.assert_close(alone[0], heatmap[index], atol=1e-4, rtol=1e-4)


def test_points_show_up_in_the_cell_where_they_are(lidar: BevFusion) -> None:
    """Off the diagonal: (17.5, -10.5) m is cell 20.75 along x and 2.75 along y; maps are [x, y], as the spec says."""
    seen: list[Tensor] = []
    handle = lidar.pts_middle_encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        lidar(**inputs())
    handle.remove()
    energy = seen[0][0].abs().sum(dim=0)
    assert energy.shape == (24, 16)
    x, y = torch.meshgrid(torch.arange(24.0), torch.arange(16.0), indexing="ij")
    middle = [float((energy * position).sum() / energy.sum()) for position in (x, y)]
    assert middle == pytest.approx([20.75, 2.75], abs=0.5)  # a strided cell looks at what lies around its lower edge


def test_without_cameras_there_are_no_camera_modules_and_no_fuser(lidar: BevFusion, fusion: BevFusion) -> None:
    names = {name for name, _ in lidar.named_children()}
    assert names == {"pts_voxel_layer", "pts_middle_encoder", "pts_backbone", "pts_neck", "bbox_head"}
    assert set(lidar.state_dict()) < set(fusion.state_dict())
    assert lidar.spec.cameras == ()
    given = inputs()
    with torch.no_grad():
        maps = lidar(points=given["points"], point_count=given["point_count"])
        assert torch.equal(maps["heatmap"], lidar(**given)["heatmap"])


@pytest.mark.parametrize(("channels", "first"), [("bgr", 2), ("rgb", 0)])
def test_images_enter_in_the_channel_order_of_the_weights(channels: Any, first: int) -> None:
    """The mean is subtracted by position: mmdet3d takes red's from blue."""
    network = BevFusion(GEOMETRY, "swin_t", channels, CAMERAS)
    images = inputs()["images"]
    normalised = network._normalised(images)
    assert normalised.shape == (2, 3, 64, 96)
    expected = (images[0, :, :, :, first].float() - 123.675) / 58.395
    torch.testing.assert_close(normalised[:, 0], expected)


def test_images_of_another_size_or_number_are_refused(fusion: BevFusion) -> None:
    given = inputs()
    with pytest.raises(DataError, match=r"2 cameras needs images \[1, 2, 64, 96, 3\], got \[1, 1, 64, 96, 3\]"):
        fusion(**{**given, "images": given["images"][:, :1]})
    with pytest.raises(DataError, match="got none"):
        fusion(points=given["points"], point_count=given["point_count"])


def test_a_frozen_teacher_gets_its_boxes_back(fusion: BevFusion) -> None:
    teacher = FrozenTeacher(fusion, fusion.spec)
    maps = teacher(inputs())
    assert all(value.dtype == torch.float32 for value in maps.values())
    boxes, scores, labels = teacher.boxes(maps)
    assert boxes.shape == (1, 20, 9)
    assert (scores.diff(dim=1) <= 0).all()
    assert labels.dtype == torch.int64
    assert int(labels.max()) < len(GEOMETRY.classes)
