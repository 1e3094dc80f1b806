"""mmdet3d's own BEVFusion on a CPU, with plain stand-ins for its two CUDA extensions.

Its project is no part of mmdet3d's package: a checkout of mmdetection3d holds it (projects/BEVFusion, and configs, on
which its configuration is based).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONFIG = "bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py"
#: Compiled parts of the project, relative to its package. Nothing of theirs is called after `build`.
EXTENSIONS = {
    "ops.bev_pool.bev_pool_ext": (),
    "ops.voxel.voxel_layer": (
        "dynamic_voxelize", "hard_voxelize", "dynamic_point_to_voxel_backward", "dynamic_point_to_voxel_forward",
    ),
}  # fmt: skip


class Voxelizer(nn.Module):
    """mmcv's deterministic hard voxelization with the project's order of coordinates: x, y, z."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        from mmcv.ops import Voxelization

        self.layer = Voxelization(
            layer.voxel_size, layer.point_cloud_range, layer.max_num_points, layer.max_voxels, deterministic=True
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[P, 5] -> points [V, M, 5], coordinates [V, 3], counts [V]."""
        voxels, coordinates, counts = self.layer(points)
        return voxels, coordinates.flip(1), counts


def index_add_pool(features: Tensor, cells: Tensor, batch: int, depth: int, rows: int, columns: int) -> Tensor:
    """The project's bev_pool: features [N, C] summed at cells [N, 4] (x, y, z, frame) -> [B, C, Z, X, Y]."""
    x, y, z, frame = cells.long().unbind(1)
    flat = ((frame * depth + z) * rows + x) * columns + y
    pooled = features.new_zeros(int(batch * depth * rows * columns), features.shape[1]).index_add_(0, flat, features)
    return pooled.view(batch, int(depth), int(rows), int(columns), -1).permute(0, 4, 1, 2, 3).contiguous()


def build(project: Path) -> nn.Module:
    """Camera+LiDAR BEVFusion in evaluation mode with random weights."""
    from mmdet3d.registry import MODELS
    from mmdet3d.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    for name, functions in EXTENSIONS.items():
        stub = ModuleType(f"bevfusion.{name}")
        for function in functions:
            setattr(stub, function, None)
        sys.modules[stub.__name__] = stub
    sys.path.insert(0, str(project))
    import bevfusion.depth_lss

    bevfusion.depth_lss.bev_pool = index_add_pool
    config = Config.fromfile(project / "configs" / CONFIG, import_custom_modules=False).model
    config.img_backbone.pop("init_cfg")  # would download weights
    model = MODELS.build(config)
    model.pts_voxel_layer = Voxelizer(model.pts_voxel_layer)
    return model.eval()


def copy_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights of the same keys and shapes into a model.

    Not by `load_state_dict`: without a version in its metadata mmdet3d takes sparse weights for those of spconv 1.
    """
    state = model.state_dict()
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in weights.items()}:
        raise ValueError("the networks differ in keys or shapes")
    with torch.no_grad():
        for key, value in state.items():
            value.copy_(weights[key])


def prepared(inputs: dict[str, Tensor], mean: Tensor, std: Tensor) -> tuple[dict[str, Any], list[Any]]:
    """A batch of one under our sensor contract -> what its `predict` takes: normalised BGR images, points, metas."""
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

    images = inputs["images"].flip(-1).permute(0, 1, 4, 2, 3).float()  # [1, N, 3, H, W]
    sample = Det3DDataSample()
    sample.set_metainfo({
        "lidar2img": inputs["lidar2img"][0].numpy(), "cam2img": inputs["cam2img"][0].numpy(),
        "cam2lidar": inputs["cam2lidar"][0].numpy(), "img_aug_matrix": inputs["img_aug"][0].numpy(),
        "lidar_aug_matrix": np.eye(4), "box_type_3d": LiDARInstance3DBoxes,
    })  # fmt: skip
    count = int(inputs["point_count"][0])
    return {"imgs": (images - mean) / std, "points": [inputs["points"][0, :count]]}, [sample]


def predict(model: nn.Module, batch: dict[str, Any], samples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [Q, 9] of geometric centre, scores [Q], labels [Q] of the only frame."""
    with torch.no_grad():
        (sample,) = model.predict(dict(batch), samples)
    found = sample.pred_instances_3d
    boxes = torch.cat([found.bboxes_3d.gravity_center, found.bboxes_3d.tensor[:, 3:]], dim=1)
    return boxes, found.scores_3d, found.labels_3d
