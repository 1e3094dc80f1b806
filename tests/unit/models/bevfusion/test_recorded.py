"""What a checkpoint tells of its grid and classes, and what is said when the recipe contradicts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.recorded import (
    config_values,
    disagreements,
    recorded_facts,
    records_rgb,
    remedy,
    unrecorded,
)

CLASSES = BevFusionGeometry().classes

#: The lines of mmdet3d's camera+LiDAR configuration that matter here, in the form of mmengine's pretty_text.
CONFIG = """
auto_scale_lr = dict(base_batch_size=32, enable=False)
class_names = ['car', 'truck']
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork'))
model = dict(
    bbox_head=dict(
        test_cfg=dict(
            dataset='nuScenes', grid_size=[1440, 1440, 41, ], nms_type=None, out_size_factor=8,
            pc_range=[-54.0, -54.0, ], voxel_size=[0.075, 0.075, ]),
        type='TransFusionHead'),
    data_preprocessor=dict(
        bgr_to_rgb=False,
        mean=[123.675, 116.28, 103.53, ],
        std=[58.395, 57.12, 57.375, ],
        voxelize_cfg=dict(
            max_num_points=10,
            max_voxels=[120000, 160000, ],
            point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0, ],
            voxel_size=[0.075, 0.075, 0.2, ])),
    view_transform=dict(
        dbound=[1.0, 60.0, 0.5, ], downsample=2, image_size=[256, 704, ], xbound=[-54.0, 54.0, 0.3, ]))
work_dir = './work_dirs/x'
"""


def constants(
    image: tuple[int, int] = (256, 704), cell: float = 0.3, reach: float = 54.0, last: float = 60.0, classes: int = 10
) -> dict[str, torch.Tensor]:
    """The constants of a state dict, as mmdet3d's gen_dx_bx and create_frustum define them."""
    height, width = image
    depth = torch.arange(1.0, last, 0.5).view(-1, 1, 1).expand(-1, height // 8, width // 8)
    u = torch.linspace(0, width - 1, width // 8).view(1, 1, -1).expand_as(depth)
    v = torch.linspace(0, height - 1, height // 8).view(1, -1, 1).expand_as(depth)
    return {
        "view_transform.frustum": torch.stack([u, v, depth], -1),
        "view_transform.dx": torch.tensor([cell, cell, 20.0]),
        "view_transform.bx": torch.tensor([-reach + cell / 2, -reach + cell / 2, 0.0]),
        "view_transform.nx": torch.tensor([round(2 * reach / cell), round(2 * reach / cell), 1]),
        "bbox_head.heatmap_head.1.bias": torch.zeros(classes),
    }


def meta(**changes: str) -> dict[str, Any]:
    text = CONFIG
    for old, new in changes.items():
        assert f"{old}=" in text
        start = text.index(f"{old}=")
        text = text[:start] + f"{old}={new}, _{old}=" + text[start + len(old) + 1 :]
    return {"cfg": text, "dataset_meta": {"classes": list(CLASSES), "version": "v1.0-trainval"}}


def test_the_standard_checkpoint_agrees_with_the_standard_geometry_and_tells_all_of_it() -> None:
    facts = recorded_facts(constants(), meta())
    assert disagreements(facts, BevFusionGeometry()) == []
    assert remedy(facts, BevFusionGeometry()) == ""
    assert unrecorded(facts, has_camera=True) == ()
    told = {fact.name: fact.value for fact in facts}
    assert told["image_size_px"] == (256, 704)
    assert told["depth_m"] == (1.0, 60.0)
    assert told["feature_stride"] == 8
    assert told["camera range_m (x, y)"] == (-54.0, -54.0, 54.0, 54.0)
    assert told["voxel_size_m"] == (0.075, 0.075, 0.2)
    assert told["classes"] == CLASSES


def test_constants_alone_leave_the_lidar_grid_and_the_order_of_classes_open() -> None:
    facts = recorded_facts(constants(), {})
    assert disagreements(facts, BevFusionGeometry()) == []
    assert unrecorded(facts, has_camera=True) == (
        "camera_downsample", "range_m", "voxel_size_m", "max_points", "bev_stride", "classes",
    )  # fmt: skip
    lidar = recorded_facts({"bbox_head.heatmap_head.1.bias": torch.zeros(10)}, {})
    assert unrecorded(lidar, has_camera=False) == ("range_m", "voxel_size_m", "max_points", "bev_stride", "classes")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image": (512, 1408)}, "image_size_px is [512, 1408] in the checkpoint (view_transform.frustum), [256, 704]"),
        ({"last": 80.0}, "depth_m is [1, 80] in the checkpoint (view_transform.frustum), [1, 60] here"),
        ({"cell": 0.4, "reach": 51.2}, "camera_cell_m is 0.4 in the checkpoint (view_transform.dx, bx, nx), 0.3 here"),
        ({"cell": 0.4, "reach": 51.2}, "camera range_m (x, y) is [-51.2, -51.2, 51.2, 51.2] in the checkpoint"),
        ({"classes": 3}, "number of classes is 3 in the checkpoint (bbox_head.heatmap_head.1.bias), 10 here"),
    ],
)
def test_constants_of_another_grid_are_named(changes: dict[str, Any], expected: str) -> None:
    lines = disagreements(recorded_facts(constants(**changes), {}), BevFusionGeometry())
    assert any(line.startswith(expected) for line in lines), lines


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"point_cloud_range": "[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]"},
            "range_m is [-51.2, -51.2, -5, 51.2, 51.2, 3]",
        ),
        ({"voxel_size": "0"}, ""),  # no list: not understood, so it tells nothing
        ({"max_num_points": "20"}, "max_points is 20 in the checkpoint (meta.cfg model.data_preprocessor.voxelize_cfg"),
        ({"out_size_factor": "4"}, "bev_stride is 4"),
        ({"downsample": "1"}, "camera_downsample is 1"),
        ({"mean": "[103.5, 116.3, 123.7]"}, "image mean is [103.5, 116.3, 123.7]"),
        ({"image_size": "[320, 800]"}, "image_size_px is [320, 800]"),
    ],
)
def test_a_configuration_of_another_grid_is_named(changes: dict[str, str], expected: str) -> None:
    lines = disagreements(recorded_facts({}, meta(**changes)), BevFusionGeometry())
    assert [line[: len(expected)] for line in lines] == ([expected] if expected else [])


def test_classes_in_another_order_are_named_with_what_to_write() -> None:
    swapped = ("truck", "car", *CLASSES[2:])
    for found in ({"dataset_meta": {"classes": swapped}}, {"CLASSES": swapped}):
        facts = recorded_facts({}, found)
        (line,) = disagreements(facts, BevFusionGeometry())
        assert line.startswith("classes is [truck, car, construction_vehicle")
        assert line.endswith("the same names in another order")
        assert remedy(facts, BevFusionGeometry()).endswith(f"teacher.geometry: {{classes: [{', '.join(swapped)}]}}")
        assert disagreements(facts, BevFusionGeometry(classes=swapped)) == []


def test_depths_that_do_not_end_on_a_step_are_the_same_bins() -> None:
    facts = recorded_facts(constants(last=60.2), {})  # 1.0, 1.5, ..., 60.0
    assert disagreements(facts, BevFusionGeometry(depth_m=(1.0, 60.2))) == []
    assert disagreements(facts, BevFusionGeometry(depth_m=(1.0, 60.5))) == []
    assert len(disagreements(facts, BevFusionGeometry(depth_m=(1.0, 60.0)))) == 1


def test_a_configuration_is_read_and_not_run() -> None:
    text = (
        "import os\n"
        "a = dict(b=[1, -2.5, None, 'x'], c=(True, dict(d={'e f': 1, 3: 4})))\n"
        "g = os.system('false')\n"
        "h = dict(i=open('/etc/passwd'), j=[lambda: 1, 2], **a)\n"
        "for k in a: pass\n"
    )
    assert config_values(text) == {
        "a": {"b": [1, -2.5, None, "x"], "c": [True, {"d": {"e f": 1}}]},
        "h": {"j": [2]},
    }
    assert config_values("a = (") == {}
    assert config_values("a = " + "[" * 500 + "]" * 500) == {}


def test_the_configuration_tells_the_order_of_colours() -> None:
    assert records_rgb(meta()) is False
    assert records_rgb(meta(bgr_to_rgb="True")) is True
    assert records_rgb({}) is None


@pytest.mark.parametrize("junk", [{"cfg": 3}, {"cfg": object()}, {"dataset_meta": [1]}, {"CLASSES": [1, 2]}])
def test_a_meta_of_another_make_tells_nothing(junk: dict[str, Any]) -> None:
    assert recorded_facts({}, junk) == []
