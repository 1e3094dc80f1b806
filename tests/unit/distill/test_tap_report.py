"""What the taps of a recipe give, and what is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import (
    AttentionLossConfig,
    ContrastLossConfig,
    DistillConfig,
    DistillLosses,
    FeatureLossConfig,
    HeatmapLossConfig,
    TapLayoutConfig,
)
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.distill.losses.attention import attention_transfer_loss
from bevkd_deploy.distill.progress import Progress
from bevkd_deploy.distill.step import DistillationStep
from bevkd_deploy.distill.tap_report import TappedNetwork, TapReport, report_taps
from bevkd_deploy.geometry.grid import BevGrid, BevLayout
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher

MakeConfig = Callable[..., ModelConfig]
Networks = tuple[TappedNetwork, TappedNetwork]


@pytest.fixture
def networks(
    tiny_model_config: MakeConfig, teacher_config: ModelConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> Networks:
    student = build_detector(tiny_model_config(), tiny_spec, 0)
    teacher = FrozenTeacher(build_detector(teacher_config, tiny_spec, 1), tiny_spec)
    return (
        TappedNetwork.student(student, batch["inputs"]["student"]),
        TappedNetwork.teacher(teacher, batch["inputs"]["teacher"]),
    )


def config(**losses: Any) -> DistillConfig:
    return DistillConfig(losses=DistillLosses(**losses), warmup_fraction=0.0)


def attention(tap: str, teacher: str | None = None, **options: Any) -> DistillConfig:
    return config(attention=AttentionLossConfig(student=tap, teacher=teacher or tap, **options))


def test_the_table_says_what_each_tap_gives(networks: Networks, batch: dict[str, Any]) -> None:
    losses = config(
        heatmap=HeatmapLossConfig(),
        feature=FeatureLossConfig(),
        attention=AttentionLossConfig(student="pts_backbone[1]", teacher="pts_backbone[0]"),
    )
    report = report_taps(*networks, losses)
    grid = BevGrid((-16.0, 16.0), (-12.0, 12.0), 2.0)
    found = {(loss, role): (i.path, i.shape, i.dtype, i.layout) for loss, role, i in report.rows()}
    fine, deep = BevLayout(grid), BevLayout(replace(grid, cell_m=4.0))
    assert found == {
        ("heatmap", "student"): ("output[heatmap]", (2, 10, 12, 16), "float32", fine),
        ("heatmap", "teacher"): ("output[heatmap]", (2, 10, 12, 16), "float32", fine),
        ("feature", "student"): ("pts_neck", (2, 16, 12, 16), "float32", fine),
        ("feature", "teacher"): ("pts_neck", (2, 24, 12, 16), "float32", fine),
        ("attention", "student"): ("pts_backbone[1]", (2, 8, 6, 8), "float32", deep),
        ("attention", "teacher"): ("pts_backbone[0]", (2, 12, 12, 16), "float32", fine),
    }
    heatmap = networks[1].run()["heatmap"]
    assert report.heatmaps.teacher.low == pytest.approx(float(heatmap.min()))
    assert report.heatmaps.teacher.high == pytest.approx(float(heatmap.max()))
    assert report.taps("teacher") == ("pts_neck", "pts_backbone[0]")


def test_looking_trains_nothing_and_leaves_modes_alone(networks: Networks) -> None:
    model = networks[0].model.train()
    model.img_backbone.eval()  # type: ignore[union-attr]  # someone froze its norms
    modes = [module.training for module in model.modules()]
    before = [tensor.clone() for tensor in model.state_dict().values()]
    report_taps(*networks, config(feature=FeatureLossConfig()))
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def refused(networks: Networks, losses: DistillConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        report_taps(*networks, losses)


def test_taps_that_are_not_there(networks: Networks) -> None:
    refused(networks, attention("pts_nek"), "'pts_nek': the student has no module 'pts_nek'. Did you mean 'pts_neck'")
    refused(networks, attention("pts_neck", "pts_nek"), "'pts_nek': the teacher has no module")
    refused(networks, attention("pts_neck", "pts_neck.deblock"), "of the teacher: .* no module 'deblock'. Did you mean")
    refused(networks, attention("pts_backbone"), "of the student gives a list of length 2, not a tensor")


def test_counts_that_are_not_right(networks: Networks) -> None:
    both = "pts_backbone.blocks.*"
    refused(networks, attention(both), r"is a pattern.* matches 2 in the student: pts_backbone\.blocks\.0, ")
    refused(networks, attention(both, count=3), "must match 3, but matches 2 in the student")
    refused(networks, attention(both, "pts_neck", count=2), "'pts_neck' must match 2, but matches 1 in the teacher")


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


def test_an_output_that_is_none(networks: Networks) -> None:
    student, teacher = networks
    silent = nn.Sequential(Silent())

    def run() -> Mapping[str, Tensor]:
        silent(torch.zeros(1))
        return student.run()

    broken = replace(student, model=silent, run=run)
    refused((broken, teacher), attention("0", "pts_neck"), "tap '0' of the student gives None, not a tensor")


def test_classes_that_do_not_match(networks: Networks) -> None:
    student, teacher = networks
    losses = config(heatmap=HeatmapLossConfig())
    fewer = replace(teacher, classes=teacher.classes[1:])
    refused((student, fewer), losses, r"the teacher does not know classes \['car'\]")
    more = replace(teacher, classes=(*teacher.classes, "tram"))
    refused((student, more), losses, "the teacher's heatmap has 10 channels, its classes are 11: car, .*tram")
    refused((replace(student, run=lambda: {}), teacher), losses, "the student returns no heatmap; it returns nothing")


@pytest.mark.parametrize("tap", ["img_neck", "img_backbone[0]", "img_neck.lateral_convs.0", "view_transform.depthnet"])
def test_camera_maps_have_no_place_on_the_ground(networks: Networks, tap: str) -> None:
    refused(networks, attention(tap, "pts_neck"), "student tap '.*' is a map of the camera branch: .*space: image")
    refused(networks, attention("pts_neck", tap), "teacher tap '.*' is a map of the camera branch")
    report = report_taps(*networks, attention(tap, space="image"))
    (pair,) = report.pairs["attention"]
    assert pair.student.layout is None and pair.student.shape[0] == 4  # two frames of two cameras


def test_camera_maps_are_compared_at_one_size(networks: Networks) -> None:
    losses = attention("img_neck", "img_backbone[1]", space="image")
    refused(networks, losses, r"loss attention: image maps of one size .*\[4, 8, 4, 8\].*\[4, \d+, 2, 4\]")
    refused(networks, attention("pts_neck", space="image"), "student tap 'pts_neck' is no map of the camera branch")


def test_the_view_transforms_own_output_is_a_bev_map(networks: Networks) -> None:
    (pair,) = report_taps(*networks, attention("view_transform")).pairs["attention"]
    assert pair.student.layout is not None and pair.student.shape[2:] == (12, 16)


def test_what_is_no_map_is_refused(networks: Networks) -> None:
    refused(networks, attention("pts_voxel_encoder"), r"student tap 'pts_voxel_encoder' has shape \[2, 300, 8\]; a BEV")
    # Four axes, but pillars by points: no grid of square cells.
    refused(networks, attention("pts_voxel_encoder.pfn_layers"), "a map of 300x6 over x .* m in yx order has cells of")


def test_declared_layouts_are_checked_against_the_map(networks: Networks) -> None:
    fits = {"student_layout": TapLayoutConfig(cell_m=4.0), "teacher_layout": TapLayoutConfig(axis_order="yx")}
    report_taps(*networks, attention("pts_backbone[1]", **fits))
    wrong = {"student_layout": TapLayoutConfig(cell_m=2.0)}
    refused(networks, attention("pts_backbone[1]", **wrong), "has cells of 4 m, but its layout declares cell_m 2")
    wrong = {"teacher_layout": TapLayoutConfig(axis_order="xy")}
    refused(
        networks, attention("pts_neck", **wrong), r"teacher tap .* 12x16 over .* in xy order has cells of 2\.667 x 1\.5"
    )
    wider = {"teacher_layout": TapLayoutConfig(x_range_m=(-32.0, 32.0), y_range_m=(-24.0, 24.0))}
    (pair,) = report_taps(*networks, attention("pts_neck", **wider)).pairs["attention"]
    assert pair.teacher.layout == BevLayout(BevGrid((-32.0, 32.0), (-24.0, 24.0), 4.0))


def test_the_schema_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="'space: image' compares pixels"):
        AttentionLossConfig(space="image", student_layout=TapLayoutConfig(cell_m=1.0))
    with pytest.raises(ValueError, match=r"x_range_m must be \(min, max\), got \[4.0, -4.0\]"):
        TapLayoutConfig(x_range_m=(4.0, -4.0))
    with pytest.raises(ValueError, match="space"):
        ContrastLossConfig(space="image")  # type: ignore[arg-type]


def step_of(networks: Networks, losses: DistillConfig, tiny_spec: GraphSpec) -> tuple[DistillationStep, TapReport]:
    report = report_taps(*networks, losses)
    torch.manual_seed(0)
    teacher = FrozenTeacher(networks[1].model, tiny_spec)
    return DistillationStep(networks[0].model, teacher, losses, report).eval(), report  # type: ignore[arg-type]


def test_a_pattern_gives_the_sum_over_its_pairs(
    networks: Networks, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    step, report = step_of(networks, attention("pts_backbone.blocks.*", count=2), tiny_spec)
    assert [pair.student.path for pair in report.pairs["attention"]] == [f"pts_backbone.blocks.{i}" for i in (0, 1)]
    together = step(batch, Progress.at(1.0)).raw["attention"]
    alone = [
        step_of(networks, attention(f"pts_backbone.blocks.{i}"), tiny_spec)[0](batch, Progress.at(1.0)).raw["attention"]
        for i in (0, 1)
    ]
    assert all(value > 0 for value in alone)
    assert together.item() == pytest.approx((alone[0] + alone[1]).item())


def test_losses_on_deeper_levels_and_camera_maps_reach_the_student(
    networks: Networks, tiny_spec: GraphSpec, batch: dict[str, Any], make_dataset: Callable[..., FrameDataset]
) -> None:
    losses = config(
        feature=FeatureLossConfig(student="pts_backbone[1]", teacher="pts_backbone[0]"),
        attention=AttentionLossConfig(student="img_neck", teacher="img_neck", space="image"),
        contrast=ContrastLossConfig(student="pts_backbone[1]", embedding_channels=4, queue_size=8, cells_per_sample=8),
    )
    step, report = step_of(networks, losses, tiny_spec)
    found = step.train()(batch, Progress.at(1.0)).weighted
    for name in ("feature_kd_loss", "attention_kd_loss", "contrast_kd_loss"):
        backbone = list(step.detector.img_backbone.parameters())
        gradients = torch.autograd.grad(found[name], backbone, retain_graph=True, allow_unused=True)
        assert torch.isfinite(found[name])
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, name
    images = config(feature=FeatureLossConfig(student="img_neck", teacher="img_neck", space="image"))
    one = make_dataset()[0]  # another batch size than the one that was reported on
    value = step_of(networks, images, tiny_spec)[0](collate([one]), Progress.at(1.0)).raw["feature"]
    assert torch.isfinite(value) and value > 0


def test_a_deeper_level_keeps_the_height_of_a_truths_peak(networks: Networks) -> None:
    (pair,) = report_taps(*networks, attention("pts_backbone[1]")).pairs["attention"]
    gaussians = torch.zeros(2, 10, 12, 16)
    gaussians[1, 3, 5, 9] = 1.0
    coarse = pair.foreground(gaussians, networks[0].layout, torch.zeros(2, 8, 6, 8))
    expected = torch.zeros(2, 10, 6, 8)
    expected[1, 3, 2, 4] = 1.0
    assert torch.equal(coarse, expected)
    (image,) = report_taps(*networks, attention("img_neck", space="image")).pairs["attention"]
    pixels = image.foreground(gaussians, networks[0].layout, torch.zeros(6, 8, 4, 8))
    assert torch.equal(pixels, torch.ones(6, 1, 4, 8))


def test_a_teacher_drawn_x_first(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, make_dataset: Callable[..., FrameDataset]
) -> None:
    """The same network, its taps turned: declared so, the attention loss is that of the network as it is: zero."""

    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(-1, -2).contiguous()

    student = build_detector(tiny_model_config(), tiny_spec, 0).eval()
    teacher = FrozenTeacher(build_detector(tiny_model_config(), tiny_spec, 0), tiny_spec)
    teacher.model.turned = Turned()
    run = teacher.model.pts_neck.forward

    def neck(maps: list[Tensor]) -> Tensor:
        bev = run(maps)
        teacher.model.turned(bev)
        return bev

    teacher.model.pts_neck.forward = neck
    inputs = collate([make_dataset(teacher=tiny_spec)[0]])["inputs"]
    networks = TappedNetwork.student(student, inputs["student"]), TappedNetwork.teacher(teacher, inputs["teacher"])
    (pair,) = report_taps(
        *networks, attention("pts_neck", "turned", teacher_layout=TapLayoutConfig(axis_order="xy"))
    ).pairs["attention"]
    assert pair.teacher.shape[2:] == (16, 12)
    features = torch.randn(1, 5, 12, 16)
    assert float(attention_transfer_loss(*pair.aligned(features, features.transpose(-1, -2)))) == 0
    assert torch.equal(pair.aligned(features, features.transpose(-1, -2))[1], features)
