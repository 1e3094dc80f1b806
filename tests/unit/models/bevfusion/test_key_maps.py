"""Names of mit-han-lab's BEVFusion under mmdet3d's, and telling the variants and other networks apart."""

from __future__ import annotations

import pytest
import torch

from bevkd_deploy.models.bevfusion.key_maps import (
    Naming,
    Variant,
    looks_like,
    mmdet3d_name,
    named_state,
    variant_of,
)

#: By hand from the sources of mit-han-lab/bevfusion@326653d and open-mmlab/mmdetection3d@fe25f7a: one key of each
#: module, and each kind of key in the head's transformer.
MIT_TO_MMDET3D = {
    "encoders.camera.backbone.patch_embed.projection.weight": "img_backbone.patch_embed.projection.weight",
    "encoders.camera.backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table": (
        "img_backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table"
    ),
    "encoders.camera.backbone.layer3.5.conv3.weight": "img_backbone.layer3.5.conv3.weight",
    "encoders.camera.neck.lateral_convs.0.bn.running_var": "img_neck.lateral_convs.0.bn.running_var",
    "encoders.camera.vtransform.frustum": "view_transform.frustum",
    "encoders.camera.vtransform.dtransform.3.weight": "view_transform.dtransform.3.weight",
    "encoders.camera.vtransform.downsample.7.bias": "view_transform.downsample.7.bias",
    "encoders.lidar.backbone.conv_input.0.weight": "pts_middle_encoder.conv_input.0.weight",
    "encoders.lidar.backbone.encoder_layers.encoder_layer1.2.0.weight": (
        "pts_middle_encoder.encoder_layers.encoder_layer1.2.0.weight"
    ),
    "fuser.0.weight": "fusion_layer.0.weight",
    "decoder.backbone.blocks.1.16.running_mean": "pts_backbone.blocks.1.16.running_mean",
    "decoder.neck.deblocks.1.0.weight": "pts_neck.deblocks.1.0.weight",
    "heads.object.shared_conv.bias": "bbox_head.shared_conv.bias",
    "heads.object.heatmap_head.0.bn.num_batches_tracked": "bbox_head.heatmap_head.0.bn.num_batches_tracked",
    "heads.object.class_encoding.weight": "bbox_head.class_encoding.weight",
    "heads.object.decoder.0.self_attn.in_proj_weight": "bbox_head.decoder.0.self_attn.attn.in_proj_weight",
    "heads.object.decoder.0.self_attn.out_proj.bias": "bbox_head.decoder.0.self_attn.attn.out_proj.bias",
    "heads.object.decoder.0.multihead_attn.in_proj_bias": "bbox_head.decoder.0.cross_attn.attn.in_proj_bias",
    "heads.object.decoder.0.multihead_attn.out_proj.weight": "bbox_head.decoder.0.cross_attn.attn.out_proj.weight",
    "heads.object.decoder.0.linear1.weight": "bbox_head.decoder.0.ffn.layers.0.0.weight",
    "heads.object.decoder.0.linear2.bias": "bbox_head.decoder.0.ffn.layers.1.bias",
    "heads.object.decoder.0.norm1.weight": "bbox_head.decoder.0.norms.0.weight",
    "heads.object.decoder.0.norm2.weight": "bbox_head.decoder.0.norms.1.weight",
    "heads.object.decoder.0.norm3.bias": "bbox_head.decoder.0.norms.2.bias",
    "heads.object.decoder.0.self_posembed.position_embedding_head.1.running_var": (
        "bbox_head.decoder.0.self_posembed.position_embedding_head.1.running_var"
    ),
    "heads.object.prediction_heads.0.heatmap.1.weight": "bbox_head.prediction_heads.0.heatmap.1.weight",
}

LIDAR = [
    "pts_middle_encoder.conv_input.0.weight",
    "pts_backbone.blocks.0.0.weight",
    "bbox_head.heatmap_head.1.bias",
    "bbox_head.decoder.0.norms.0.weight",
]
CAMERA = ["view_transform.dtransform.0.weight", "fusion_layer.0.weight"]
MIT_LIDAR = [
    "encoders.lidar.backbone.conv_input.0.weight",
    "decoder.backbone.blocks.0.0.weight",
    "heads.object.heatmap_head.1.bias",
    "heads.object.decoder.0.norm1.weight",
]


def state(keys: list[str]) -> dict[str, torch.Tensor]:
    return {key: torch.full((1,), float(number)) for number, key in enumerate(keys)}


@pytest.mark.parametrize(("theirs", "ours"), MIT_TO_MMDET3D.items())
def test_names_of_mit_han_lab_become_those_of_mmdet3d(theirs: str, ours: str) -> None:
    assert mmdet3d_name(theirs, "mit") == ours
    assert mmdet3d_name(ours, "mmdet3d") == ours


def test_names_of_no_module_stay_and_the_first_conversion_differs_in_one_module() -> None:
    assert mmdet3d_name("encoders.radar.backbone.weight", "mit") == "encoders.radar.backbone.weight"
    assert mmdet3d_name("vtransform.depthnet.6.bias", "converted") == "view_transform.depthnet.6.bias"
    assert mmdet3d_name("bbox_head.decoder.0.norms.1.bias", "converted") == "bbox_head.decoder.0.norms.1.bias"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (LIDAR, Variant("mmdet3d", None)),
        ([*LIDAR, *CAMERA, "img_backbone.patch_embed.projection.weight"], Variant("mmdet3d", "swin_t")),
        ([*LIDAR, *CAMERA, "img_backbone.layer1.0.conv3.weight"], Variant("mmdet3d", "resnet50")),
        ([f"module.{key}" for key in LIDAR], Variant("mmdet3d", None)),
        (
            [*LIDAR, "vtransform.dx", "fusion_layer.0.weight", "img_backbone.patch_embed.norm.bias"],
            Variant("converted", "swin_t"),
        ),
        (MIT_LIDAR, Variant("mit", None)),
        (
            [*MIT_LIDAR, "encoders.camera.vtransform.dx", "encoders.camera.backbone.layer1.0.conv3.weight"],
            Variant("mit", "resnet50"),
        ),
        ([*LIDAR, *CAMERA, "img_backbone.layer1.0.conv2.weight"], None),  # a ResNet of basic blocks
        (LIDAR[1:], None),  # no sparse encoder
        ([*LIDAR[:2], "bbox_head.task_heads.0.reg.0.conv.weight"], None),
    ],
)
def test_the_variant_is_read_from_the_keys(keys: list[str], expected: Variant | None) -> None:
    assert variant_of(named_state(state(keys))) == expected


@pytest.mark.parametrize(
    ("naming", "channels", "coding"),
    [("mmdet3d", "bgr", "mmdet3d"), ("mit", "rgb", "mit"), ("converted", "rgb", "mit")],
)
def test_colours_and_boxes_follow_from_who_trained_it(naming: Naming, channels: str, coding: str) -> None:
    variant = Variant(naming, "swin_t")
    assert (variant.image_channels, variant.box_coding) == (channels, coding)


def test_every_key_is_mapped_or_ignored_for_a_reason() -> None:
    keys = [
        *MIT_LIDAR,
        "heads.map.classifier.0.weight",
        "encoders.camera.backbone.norm0.weight",
        "heads.object.bev_pos",
        "ema_encoders_lidar_backbone_conv_input_0_weight",
        "stranger.weight",
    ]
    given = state(keys)
    named = named_state(given)
    assert set(named.file_keys.values()) | set(named.ignored) == set(keys)
    assert set(named.ignored) == set(keys[4:8])
    assert named.ignored["heads.map.classifier.0.weight"] == "BEV segmentation head beside the detection head"
    assert named.tensors["stranger.weight"] is given["stranger.weight"]
    for name, tensor in named.tensors.items():
        assert tensor is given[named.file_keys[name]]


@pytest.mark.parametrize(
    ("keys", "header", "expected"),
    [
        (["bbox_head.shared.weight"], {"bevkd": "{}"}, "bevkd's own family: load it with teacher.source: native"),
        (["pts_bbox_head.task_heads.0.reg.0.conv.weight"], {}, "a CenterHead detector such as CenterPoint"),
        (["bbox_head.conv_cls.weight", "backbone.blocks.0.0.weight"], {}, "an anchor-head detector"),
        (["heads.map.classifier.0.weight", *MIT_LIDAR[:2]], {}, "mit-han-lab's BEV segmentation"),
        (["heads.object.task_heads.0.reg.0.conv.weight"], {}, "mit-han-lab's network with a CenterHead"),
        (["img_backbone.cb_modules.0.norm.weight", "pts_bbox_head.x"], {}, "ADLab's BEVFusion"),
        (["encoders.camera.backbone.conv1._input_quantizer._amax"], {}, "a quantised network"),
        (["layer1.0.conv1.weight", "fc.weight"], {}, "something with the modules fc, layer1"),
    ],
)
def test_other_networks_are_called_by_their_name(keys: list[str], header: dict[str, str], expected: str) -> None:
    assert expected in looks_like(keys, header)
