"""BEVFusion's trunk and head against mmdet3d's own modules, with our weights in them.

The project is no part of mmdet3d's package: BEVFUSION_PROJECT names a checkout's projects/BEVFusion, else this skips.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.bev import SECOND, SECONDFPN
from bevkd_deploy.models.bevfusion.transfusion_head import TransFusionHead

#: 24 by 16 cells of 0.6 m, no square.
GEOMETRY = BevFusionGeometry(range_m=(-7.2, -4.8, -5.0, 7.2, 4.8, 3.0), proposals=50)
CELLS = (24, 16)
IN_CHANNELS = 32


@pytest.fixture(scope="module")
def project(mmdet3d: ModuleType) -> None:
    """Register the project's head; its package as a whole would need compiled operators."""
    folder = os.environ.get("BEVFUSION_PROJECT")
    if folder is None:
        pytest.skip("BEVFUSION_PROJECT names no checkout of mmdetection3d/projects/BEVFusion")
    for name in ("transformer", "utils", "transfusion_head"):
        spec = importlib.util.spec_from_file_location(f"bevfusion_{name}", Path(folder) / "bevfusion" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights and batch norm statistics that make every part of a module matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.1 * noise.abs())
            elif value.dim() == 1:
                value.copy_(0.1 * noise + (name.endswith("weight")))
            else:
                value.copy_(noise * 1.4 / value[0].numel() ** 0.5)
    return module.eval()


def their_head() -> Any:
    from mmdet3d.registry import MODELS

    attention = {"embed_dims": 128, "num_heads": 8, "dropout": 0.1}
    cells = [side * GEOMETRY.bev_stride for side in CELLS]
    cell_m = list(GEOMETRY.voxel_size_m[:2])
    low_m = list(GEOMETRY.range_m[:2])
    return MODELS.build({
        "type": "TransFusionHead", "num_proposals": GEOMETRY.proposals, "auxiliary": True, "in_channels": IN_CHANNELS,
        "hidden_channel": 128, "num_classes": 10, "nms_kernel_size": 3, "num_decoder_layers": 1,
        "decoder_layer": {
            "type": "TransformerDecoderLayer", "self_attn_cfg": dict(attention), "cross_attn_cfg": dict(attention),
            "ffn_cfg": {"embed_dims": 128, "feedforward_channels": 256, "num_fcs": 2, "ffn_drop": 0.1},
            "norm_cfg": {"type": "LN"}, "pos_encoding_cfg": {"input_channel": 2, "num_pos_feats": 128},
        },
        "test_cfg": {"dataset": "nuScenes", "grid_size": [*cells, 41], "out_size_factor": 8, "voxel_size": cell_m,
                     "pc_range": low_m, "nms_type": None},
        "common_heads": {"center": [2, 2], "height": [1, 2], "dim": [3, 2], "rot": [2, 2], "vel": [2, 2]},
        "bbox_coder": {"type": "TransFusionBBoxCoder", "pc_range": low_m, "voxel_size": cell_m, "out_size_factor": 8,
                       "post_center_range": list(GEOMETRY.post_center_range_m), "score_threshold": 0.0,
                       "code_size": 10},
        "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True},
    })  # fmt: skip


def ranked(rows: Tensor) -> Tensor:
    """Rows in the order of their columns, rounded, to compare sets."""
    order = sorted(range(len(rows)), key=lambda row: (rows[row] * 1e3).round().tolist())
    return rows[order]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_head_and_boxes_are_those_of_mmdet3d(project: None, seed: int) -> None:
    from mmdet3d.structures import LiDARInstance3DBoxes

    ours = randomised(TransFusionHead(IN_CHANNELS, GEOMETRY), seed)
    theirs = their_head().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    bev = torch.randn(2, IN_CHANNELS, *CELLS, generator=torch.Generator().manual_seed(100 + seed))
    with torch.no_grad():
        (maps,) = ours([bev])[0]
        (their_maps,) = theirs([bev], None)[0]
        for name, value in their_maps.items():
            if name == "dense_heatmap":
                torch.testing.assert_close(maps[name], value, atol=1e-5, rtol=1e-5)
            for frame in range(len(value)):  # as sets of queries
                torch.testing.assert_close(
                    ranked(maps[name][frame].flatten(1).T), ranked(value[frame].flatten(1).T), atol=1e-4, rtol=1e-4
                )
        boxes, scores, labels = ours.decode(maps)
        predicted = theirs.predict([bev], [{"box_type_3d": LiDARInstance3DBoxes}] * 2)
    for frame, instances in enumerate(predicted):
        center = instances.bboxes_3d.gravity_center
        rows = torch.cat([center, instances.bboxes_3d.tensor[:, 3:], instances.scores_3d[:, None]], dim=1)
        rows = torch.cat([rows, instances.labels_3d[:, None].float()], dim=1)
        kept = scores[frame] > 0
        ours_rows = torch.cat([boxes[frame], scores[frame, :, None], labels[frame, :, None].float()], dim=1)[kept]
        assert len(rows) == len(ours_rows) > 30
        torch.testing.assert_close(ranked(ours_rows), ranked(rows), atol=1e-3, rtol=1e-4)


def test_backbone_and_neck_are_those_of_mmdet3d(mmdet3d: ModuleType) -> None:
    from mmdet3d.registry import MODELS

    norm = {"type": "BN", "eps": 0.001, "momentum": 0.01}
    backbone = MODELS.build({
        "type": "SECOND", "in_channels": 256, "out_channels": [128, 256], "layer_nums": [5, 5],
        "layer_strides": [1, 2], "norm_cfg": dict(norm), "conv_cfg": {"type": "Conv2d", "bias": False},
    }).eval()  # fmt: skip
    neck = MODELS.build({
        "type": "SECONDFPN", "in_channels": [128, 256], "out_channels": [256, 256], "upsample_strides": [1, 2],
        "norm_cfg": dict(norm), "upsample_cfg": {"type": "deconv", "bias": False}, "use_conv_for_no_stride": True,
    }).eval()  # fmt: skip
    our_backbone, our_neck = randomised(SECOND(), 3), randomised(SECONDFPN(), 4)
    backbone.load_state_dict(our_backbone.state_dict(), strict=True)
    neck.load_state_dict(our_neck.state_dict(), strict=True)
    bev = torch.rand(1, 256, 12, 20)
    with torch.no_grad():
        levels, their_levels = our_backbone(bev), backbone(bev)
        assert len(levels) == len(their_levels)
        for level, their_level in zip(levels, their_levels, strict=True):
            torch.testing.assert_close(level, their_level, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(our_neck(levels), neck(their_levels), atol=1e-5, rtol=1e-5)
