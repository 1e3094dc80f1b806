"""Weight inheritance: bit-equal at the same size, the right channels at a smaller one, never silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.distill.inheritance import InheritanceReport, inherit
from bevkd_deploy.models.channel_flow import channel_flow
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.factory import build_detector

MakeConfig = Callable[..., ModelConfig]


def lived_in(detector: FusionDetector) -> FusionDetector:
    """Batch norms and biases of a trained network: none at its initial value."""
    generator = torch.Generator().manual_seed(7)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.2)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.num_batches_tracked.fill_(5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator))
    return detector.eval()


def bev_of(config: ModelConfig, **changes: Any) -> ModelConfig:
    return config.model_copy(update={"bev": config.bev.model_copy(update=changes)})


def how(report: InheritanceReport) -> dict[str, str]:
    return {tensor.key: tensor.how for tensor in report.tensors}


def detail(report: InheritanceReport, key: str) -> str:
    return next(tensor.detail for tensor in report.tensors if tensor.key == key)


@torch.no_grad()
def outputs(detector: FusionDetector, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return detector(**batch["inputs"]["student"])


def test_a_student_of_the_teachers_size_becomes_the_teacher(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    teacher = lived_in(build_detector(tiny_model_config(), tiny_spec, 1))
    student = build_detector(tiny_model_config(), tiny_spec, 2).eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    report = inherit(student, teacher)
    assert set(how(report).values()) == {"whole"}
    assert [tensor.key for tensor in report.tensors] == list(student.state_dict())
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert torch.equal(teacher.state_dict()[key], before[key]), key
    mine, theirs = outputs(student, batch), outputs(teacher, batch)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def kill_channels(detector: FusionDetector, alive: int) -> dict[str, tuple[int, ...]]:
    """Silence all but `alive` channels of every free stream (by its writers); which ones live is drawn.

    A silent channel is written by zeros, its batch norm gives zero. Readers keep their weights for it.
    """
    generator = torch.Generator().manual_seed(3)
    flow, weights = channel_flow(detector), detector.state_dict()
    living = {
        name: tuple(sorted(torch.randperm(stream.size, generator=generator)[: _share(stream.size, alive)].tolist()))
        for name, stream in flow.streams.items()
        if stream.labels is None
    }
    with torch.no_grad():
        for link in flow.links:
            start = 0
            for name in link.writes:
                size = flow.streams[name].size
                dead = [start + index for index in range(size) if name in living and index not in living[name]]
                start += size
                for path, tensors in ((link.conv, ("weight", "bias")), (link.norm, ("weight", "bias", "running_mean"))):
                    for tensor in tensors:
                        if (value := weights.get(f"{path}.{tensor}")) is not None:
                            value[dead] = 0
    return living


def _share(size: int, twelfths: int) -> int:
    return size * twelfths // 12


def test_a_narrower_student_of_a_half_dead_teacher_computes_the_same(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    """Where only as many channels live as the student has, nothing may be lost: every index is followed everywhere."""
    camera = {"base_channels": 6, "backbone": "resnet18"}
    teacher = lived_in(build_detector(tiny_model_config(width=12, camera=camera), tiny_spec, 1))
    living = kill_channels(teacher, 8)
    small = {"base_channels": 4, "backbone": "resnet18"}
    student = build_detector(tiny_model_config(width=8, camera=small), tiny_spec, 2).eval()
    report = inherit(student, teacher)
    assert report.counts()["sliced"] > 60
    assert "left" not in report.counts()
    assert {name: index for name, index in report.kept.items() if name in living} == living
    mine, theirs = outputs(student, batch), outputs(teacher, batch)
    for name, value in theirs.items():
        assert value.std() > 1e-4, name
        assert torch.allclose(mine[name], value, atol=1e-5, rtol=1e-4), name


def test_channels_are_chosen_by_the_l1_norm_of_what_writes_them(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec
) -> None:
    teacher = lived_in(build_detector(tiny_model_config(width=12), tiny_spec, 1))
    strong = [1, 2, 3, 5, 6, 8, 9, 11]
    conv, norm = teacher.fusion_layer.conv[0], teacher.fusion_layer.conv[1]
    with torch.no_grad():
        conv.weight[strong] *= -50  # the norm counts, not the sign
    student = build_detector(tiny_model_config(), tiny_spec, 2)
    report = inherit(student, teacher)
    assert list(report.kept["fused"]) == strong
    camera, lidar = list(report.kept["camera bev"]), list(report.kept["pts_middle_encoder.last"])
    read = camera + [12 + index for index in lidar]
    assert torch.equal(student.fusion_layer.conv[0].weight, conv.weight[strong][:, read])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(student.fusion_layer.conv[1], name), getattr(norm, name)[strong]), name
    assert student.fusion_layer.conv[1].num_batches_tracked == 5
    first = student.pts_backbone.blocks[0][0][0].weight
    written = list(report.kept["pts_backbone.0.last"])
    assert torch.equal(first, teacher.pts_backbone.blocks[0][0][0].weight[written][:, strong])
    assert how(report)["fusion_layer.conv.0.weight"] == "sliced"
    assert "fusion_layer.conv.0.weight [12, 24, 3, 3] -> [8, 16, 3, 3]" in detail(report, "fusion_layer.conv.0.weight")


def test_a_residual_is_one_stream(tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    """The norms of all summands count: the shortcut of layer2 is strong where its last convolution is weak."""
    teacher = build_detector(tiny_model_config(camera={"base_channels": 6}), tiny_spec, 1)
    block = teacher.img_backbone.layer2[0]
    with torch.no_grad():
        block.downsample[0].weight[:8] += 100.0
        block.conv2.weight[4:] += 1.0
    student = build_detector(tiny_model_config(), tiny_spec, 2)
    kept = list(inherit(student, teacher).kept["image layer2"])
    assert kept == list(range(8))
    mine = student.img_backbone.layer2[0]
    assert torch.equal(mine.conv2.weight[:, 0], block.conv2.weight[:8, inherit(student, teacher).kept[
        "image layer2.0 inner"][0]])  # fmt: skip
    assert torch.equal(mine.downsample[1].running_var, block.downsample[1].running_var[:8])


def test_heads_go_by_class_name(tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]) -> None:
    config = tiny_model_config()
    turned = config.graph_spec(tiny_spec.cameras, CLASS_NAMES[::-1])
    teacher = lived_in(build_detector(config, turned, 1))
    student = build_detector(config, tiny_spec, 2).eval()
    inherit(student, teacher)
    mine, theirs = outputs(student, batch), outputs(teacher, batch)
    assert torch.allclose(mine["heatmap"], theirs["heatmap"].flip(1), atol=1e-6)
    assert torch.equal(mine["dim"], theirs["dim"])


def test_a_shallower_backbone_inherits_its_first_and_last_layers(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec
) -> None:
    config = tiny_model_config()
    teacher = lived_in(build_detector(bev_of(config, block_layers=(3, 4)), tiny_spec, 1))
    student = build_detector(bev_of(config, block_layers=(3, 2)), tiny_spec, 2)
    fresh = build_detector(bev_of(config, block_layers=(3, 2)), tiny_spec, 2).state_dict()
    report = inherit(student, teacher)
    left = [tensor.key for tensor in report.tensors if tensor.how == "left"]
    assert {key.rsplit(".", 2)[0] for key in left} == {"pts_backbone.blocks.1.1"}
    assert all(torch.equal(student.state_dict()[key], fresh[key]) for key in left)
    assert detail(report, left[0]) == "reads pts_backbone.1.0 here and pts_backbone.1.2 in the teacher"
    assert torch.equal(student.pts_backbone.blocks[0][2][0].weight, teacher.pts_backbone.blocks[0][2][0].weight)
    assert len(report.lines()) == 1 + len(left)
    assert report.lines()[0] == (
        f"inherited from the teacher: {report.counts()['whole']} whole, 0 sliced, {len(left)} left (as initialised)"
    )


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"camera": {"depth_bins": 7}}, "view_transform.depthnet.1.bias", "no depth bin 0 of 7, 1 to 25 m"),
        ({"camera": {"depth_m": (1.0, 20.0)}}, "view_transform.depthnet.1.bias", "no depth bin 0 of 6, 1 to 20 m"),
        ({"camera": {"base_channels": 5}}, "img_backbone.conv1.weight", "image stem has 5 channels here and 4 in the"),
        ({"camera": {"feature_stride": 4}}, "img_neck.lateral_convs.0.weight", "the teacher has no such layer"),
        ({"camera": {"backbone": "resnet18"}}, "img_backbone.layer2.1.conv1.weight", "the teacher has no such layer"),
        ({"stride": 4, "pillar_size_m": 0.5}, "pts_middle_encoder.down.1.0.weight", "reads pts_middle_encoder.0 here"),
    ],
)
def test_what_has_no_counterpart_is_left_and_named(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, changes: dict[str, Any], key: str, reason: str
) -> None:
    teacher = build_detector(tiny_model_config(), tiny_spec, 1)
    config = tiny_model_config(**changes)
    spec = config.graph_spec(tiny_spec.cameras)
    student, fresh = (build_detector(config, spec, 2) for _ in range(2))
    report = inherit(student, teacher)
    assert how(report)[key] == "left"
    assert reason in detail(report, key)
    assert torch.equal(student.state_dict()[key], fresh.state_dict()[key])
    assert how(report)["bbox_head.reg.weight"] == "whole"
    # What is said to be inherited has changed, what is said to be left has not.
    weights = {k: v for k, v in student.state_dict().items() if k.endswith("conv1.weight") or k.endswith(".0.weight")}
    for name, value in weights.items():
        if value.dim() == 4:
            assert torch.equal(value, fresh.state_dict()[name]) == (how(report)[name] == "left"), name


def test_only_the_parts_asked_for_are_inherited(tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    teacher, student = (build_detector(tiny_model_config(), tiny_spec, seed) for seed in (1, 2))
    fresh = build_detector(tiny_model_config(), tiny_spec, 2).state_dict()
    report = inherit(student, teacher, ["lidar", "head"])
    inherited = {key.split(".")[0] for key, what in how(report).items() if what != "left"}
    assert inherited == {"pts_voxel_encoder", "pts_middle_encoder", "bbox_head"}
    assert detail(report, "img_backbone.conv1.weight") == "not asked for"
    assert torch.equal(student.state_dict()["img_backbone.conv1.weight"], fresh["img_backbone.conv1.weight"])


@pytest.mark.parametrize("changes", [{}, {"camera": {"backbone": "resnet34"}}, {"stride": 4, "pillar_size_m": 0.5}])
def test_the_channel_flow_covers_every_tensor(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, changes: dict[str, Any]
) -> None:
    """And its sizes are those of the convolutions."""
    config = tiny_model_config(**changes)
    detector = build_detector(config, config.graph_spec(tiny_spec.cameras), 0)
    flow = channel_flow(detector)
    paths = {path for link in flow.links for path in (link.conv, link.norm) if path}
    assert {key.rpartition(".")[0] for key in detector.state_dict()} == paths
    assert len({link.role for link in flow.links}) == len(flow.links)
    for link in flow.links:
        conv = detector.get_submodule(link.conv)
        assert conv.in_channels == sum(flow.streams[name].size for name in link.reads), link.conv
        assert conv.out_channels == sum(flow.streams[name].size for name in link.writes), link.conv


def test_the_report_goes_into_a_file(tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    teacher = build_detector(tiny_model_config(width=12), tiny_spec, 1)
    report = inherit(build_detector(tiny_model_config(), tiny_spec, 2), teacher).as_json()
    assert report["tensors"][0]["how"] in ("whole", "sliced")
    assert len(report["kept"]["fused"]) == 8
