"""One distillation step on frames of the tiny world, with a wider teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DeadTermError, UsageError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import (
    AttentionLossConfig,
    ContrastLossConfig,
    DistillConfig,
    DistillLosses,
    FeatureLossConfig,
    HeatmapLossConfig,
)
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.distill.alignment import class_order
from bevkd_deploy.distill.progress import Progress, Stage
from bevkd_deploy.distill.step import DistillationStep, TrainingStep
from bevkd_deploy.distill.tap_report import TappedNetwork, report_taps
from bevkd_deploy.distill.weighting import gradient_norms
from bevkd_deploy.models.detection_loss import detection_losses
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.synthetic_frame import synthetic_feed
from bevkd_deploy.teachers.frozen import FrozenTeacher

MakeConfig = Callable[..., ModelConfig]
ALL_ON = Progress.at(0.0).stage
TERMS = ("heatmap_kd_loss", "feature_kd_loss", "attention_kd_loss", "contrast_kd_loss")


def at(fraction: float, stage: Stage = ALL_ON) -> Progress:
    """Some way into a training."""
    return replace(Progress.at(fraction), stage=stage)


def all_losses(warmup: float = 0.0) -> DistillConfig:
    contrast = ContrastLossConfig(embedding_channels=8, cells_per_sample=32, queue_size=48)
    losses = DistillLosses(
        heatmap=HeatmapLossConfig(),
        feature=FeatureLossConfig(),
        attention=AttentionLossConfig(student="pts_backbone[0]", teacher="pts_backbone[0]"),
        contrast=contrast,
    )
    return DistillConfig(losses=losses, warmup_fraction=warmup)


@pytest.fixture
def teacher(teacher_config: ModelConfig, tiny_spec: GraphSpec) -> FrozenTeacher:
    spec = teacher_config.graph_spec(tiny_spec.cameras)
    return FrozenTeacher(build_detector(teacher_config, spec, 1), spec)


@pytest.fixture
def step(teacher: FrozenTeacher, tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> DistillationStep:
    return step_of(teacher, tiny_model_config(), tiny_spec, all_losses())


def step_of(teacher: FrozenTeacher, student: ModelConfig, spec: GraphSpec, config: DistillConfig) -> DistillationStep:
    detector = build_detector(student, spec, 0)
    networks = TappedNetwork.student(detector, noise(spec)), TappedNetwork.teacher(teacher, noise(teacher.spec))
    taps = report_taps(*networks, config)
    torch.manual_seed(0)
    return DistillationStep(detector, teacher, config, taps)


def noise(spec: GraphSpec) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array)[None] for name, array in synthetic_feed(spec, 0).items()}


def snapshot(tensors: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def unchanged(before: list[Tensor], after: Any) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_every_term_moves_the_student(step: DistillationStep, batch: dict[str, Any]) -> None:
    losses = step.train()(batch, at(1.0)).weighted
    assert set(losses) == {"heatmap_loss", "box_loss", *TERMS}
    shared = list(step.detector.pts_backbone.parameters()) + list(step.detector.img_backbone.parameters())
    for name, loss in losses.items():
        assert torch.isfinite(loss) and loss > 0, name
        gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, name
    lidar = torch.autograd.grad(losses["contrast_kd_loss"], list(step.detector.pts_voxel_encoder.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in lidar)


def test_the_teacher_is_bit_equal_after_training(
    step: DistillationStep, teacher: FrozenTeacher, batch: dict[str, Any]
) -> None:
    before, student = snapshot(teacher.tensors()), snapshot(step.detector.state_dict().values())
    assert any("running_mean" in key for key in teacher.model.state_dict())
    optimizer = torch.optim.AdamW(step.parameters(), 0.01)
    for _ in range(3):
        step.train()
        optimizer.zero_grad()
        sum(step(batch, at(1.0)).weighted.values()).backward()
        optimizer.step()
    assert unchanged(before, teacher.tensors())
    assert not unchanged(student, step.detector.state_dict().values())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert int(step.terms["contrast"].loss.cursor) == 3 * 64 % 48


def test_the_teacher_is_in_no_state_dict_and_no_optimizer(step: DistillationStep, teacher: FrozenTeacher) -> None:
    assert {key.split(".")[0] for key in step.state_dict()} == {"detector", "terms", "weights"}
    pointers = {tensor.data_ptr() for tensor in teacher.tensors()}
    assert not pointers & {parameter.data_ptr() for parameter in step.parameters()}
    assert not any(module is teacher.model for module in step.modules())
    projectors = {key.split(".")[1] for key in step.state_dict() if key.startswith("terms.")}
    assert projectors == {"feature", "contrast"}


def test_terms_ramp_up_over_the_beginning(
    teacher: FrozenTeacher, tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    step = step_of(teacher, tiny_model_config(), tiny_spec, all_losses(warmup=0.2)).eval()

    def values(fraction: float) -> dict[str, float]:
        torch.manual_seed(0)  # of the cells that contrast draws
        return {name: value.item() for name, value in step(batch, at(fraction)).weighted.items()}

    full = values(1.0)
    assert values(0.2) == full
    for progress, share in ((0.0, 0.0), (0.05, 0.25)):
        ramped = values(progress)
        for name in TERMS:
            assert ramped[name] == pytest.approx(share * full[name]), name
        assert ramped["heatmap_loss"] == full["heatmap_loss"]


def test_weights_scale_their_terms(
    teacher: FrozenTeacher, tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    def losses(**weights: float) -> dict[str, Tensor]:
        sections = {"heatmap": HeatmapLossConfig, "attention": AttentionLossConfig}
        chosen = DistillLosses(**{name: sections[name](weight=weight) for name, weight in weights.items()})
        config = DistillConfig(losses=chosen, warmup_fraction=0.0)
        return step_of(teacher, tiny_model_config(), tiny_spec, config).eval()(batch, at(1.0)).weighted

    one, more = losses(heatmap=1.0, attention=1.0), losses(heatmap=7.0, attention=3.0)
    assert set(one) == {"heatmap_loss", "box_loss", "heatmap_kd_loss", "attention_kd_loss"}
    assert more["heatmap_kd_loss"].item() == pytest.approx(7 * one["heatmap_kd_loss"].item(), rel=1e-5)
    assert more["attention_kd_loss"].item() == pytest.approx(3 * one["attention_kd_loss"].item(), rel=1e-5)
    assert set(losses(heatmap=1.0)) == {"heatmap_loss", "box_loss", "heatmap_kd_loss"}


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    config = tiny_model_config()
    same = {**batch, "inputs": {"student": batch["inputs"]["student"], "teacher": batch["inputs"]["student"]}}
    teacher = FrozenTeacher(build_detector(config, tiny_spec, 0), tiny_spec)
    losses = step_of(teacher, config, tiny_spec, all_losses()).eval()(same, at(1.0)).weighted
    assert losses["heatmap_kd_loss"] == 0
    assert losses["attention_kd_loss"] == 0
    assert losses["feature_kd_loss"] > 0  # its projector starts at random


def test_classes_are_matched_by_name(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    """A teacher that has the same weights and its classes in reverse agrees with the student."""
    config = tiny_model_config()
    reversed_spec = config.graph_spec(tiny_spec.cameras, CLASS_NAMES[::-1])
    model = build_detector(config, tiny_spec, 0)
    last = model.bbox_head.heatmap[-1]
    with torch.no_grad():
        last.bias.copy_(torch.linspace(-3, -1, 10))
        student_head = {"weight": last.weight.clone(), "bias": last.bias.clone()}
        last.weight.copy_(last.weight.flip(0))
        last.bias.copy_(last.bias.flip(0))
    losses = DistillConfig(losses=DistillLosses(heatmap=HeatmapLossConfig()))
    step = step_of(FrozenTeacher(model, reversed_spec), config, tiny_spec, losses).eval()
    step.detector.bbox_head.heatmap[-1].load_state_dict(student_head)
    same = {**batch, "inputs": {"student": batch["inputs"]["student"], "teacher": batch["inputs"]["student"]}}
    assert step(same, at(1.0)).weighted["heatmap_kd_loss"] == 0


def test_class_order() -> None:
    assert class_order(("bus", "car", "truck"), ("car", "truck")) == [1, 2]
    with pytest.raises(UsageError, match=r"does not know classes \['barrier'\]; it knows \['bus', 'car'\]"):
        class_order(("bus", "car"), ("car", "barrier"))


def test_a_teacher_of_another_grid_teaches_in_metres(
    tiny_model_config: MakeConfig,
    tiny_spec: GraphSpec,
    make_dataset: Callable[..., FrameDataset],
) -> None:
    """Half the cell size, and a range that ends before the student's does."""
    config = tiny_model_config(width=12, range_m=(-16.0, -12.0, -3.0, 8.0, 12.0, 3.0), pillar_size_m=0.5)
    spec = config.graph_spec(tiny_spec.cameras)
    assert spec.bev_shape_yx == (24, 24)
    dataset = make_dataset(teacher=spec)
    made = collate([dataset[0], dataset[1]])
    teacher = FrozenTeacher(build_detector(config, spec, 1), spec)
    with torch.no_grad():
        teacher.model.bbox_head.heatmap[-1].bias.zero_()  # sure of something everywhere
    step = step_of(teacher, tiny_model_config(), tiny_spec, all_losses()).eval()
    losses = step(made, at(1.0)).weighted
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())

    beyond = {**made, "targets": {**made["targets"], "heatmap": made["targets"]["heatmap"].clone()}}
    beyond["targets"]["heatmap"][..., :12] = 0
    beyond["targets"]["heatmap"][:, 0, 5, 14] = 1.0  # objects only where the teacher sees nothing
    assert step(beyond, at(1.0)).weighted["heatmap_kd_loss"] < 1e-6


def test_training_alone_has_the_detection_terms(
    tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    detector = build_detector(tiny_model_config(), tiny_spec, 0).eval()
    losses = TrainingStep(detector, "student")(batch, at(0.5)).weighted
    expected = detection_losses(detector(**batch["inputs"]["student"]), batch["targets"])
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in expected.items()}


def test_raw_values_weights_and_gradient_norms_are_reported(step: DistillationStep, batch: dict[str, Any]) -> None:
    first = step.train()(batch, at(1.0))
    names = {"heatmap", "feature", "attention", "contrast"}
    assert set(first.raw) == set(first.weights) == names
    for name in names:
        weighted = first.weighted[f"{name}_kd_loss"].item()
        assert weighted == pytest.approx(first.weights[name] * first.raw[name].item(), rel=1e-6)
        assert not first.raw[name].requires_grad
    assert set(first.gradient_norms) == {"detection", *names}
    second = step(batch, at(1.0))
    assert second.gradient_norms == {}  # every term has moved the student: not measured again before step 200
    # The same numbers as a backward pass of its own gives, on the student without its head.
    step.eval()
    torch.manual_seed(0)
    step.zero_grad()
    step(batch, at(1.0)).weighted["attention_kd_loss"].backward()
    trunk = [p.grad for name, p in step.detector.named_parameters() if not name.startswith("bbox_head")]
    alone = torch.stack([grad.norm() for grad in trunk if grad is not None]).norm().item()
    step.weights.step = 0
    with torch.no_grad():
        assert step(batch, at(1.0)).gradient_norms == {}  # evaluation measures nothing
    measured = gradient_norms({"attention": step(batch, at(1.0)).weighted["attention_kd_loss"]}, step._trunk())
    assert measured["attention"] == pytest.approx(alone, rel=1e-5)


def test_an_auto_weight_gives_the_wanted_ratio_of_gradients(
    teacher: FrozenTeacher, tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    config = DistillConfig.model_validate(
        {
            "losses": {"heatmap": {"weight": {"auto": 0.5}}},
            "warmup_fraction": 0.0,
            "calibration": {"first_step": 1, "steps": 1},
        }
    )
    step = step_of(teacher, tiny_model_config(), tiny_spec, config).train()
    assert step(batch, at(0.0)).weighted["heatmap_kd_loss"] == 0  # not measured yet
    losses = step(batch, at(0.1))
    detection = losses.weighted["heatmap_loss"] + losses.weighted["box_loss"]
    norms = gradient_norms({"detection": detection, "kd": losses.weighted["heatmap_kd_loss"]}, step._trunk())
    assert norms["kd"] / norms["detection"] == pytest.approx(0.5, rel=1e-4)
    assert step(batch, at(0.2)).weights == losses.weights


def test_a_tap_that_reaches_nothing_stops_the_run_by_name(step: DistillationStep, batch: dict[str, Any]) -> None:
    for name, parameter in step.detector.named_parameters():
        parameter.requires_grad_(name.startswith("bbox_head"))
    with pytest.raises(UsageError, match="tap 'pts_neck' of the student carries no gradient"):
        step.train()(batch, at(1.0))
    attention = step.terms["attention"]
    attention.forward = lambda view: view.teacher_maps["heatmap"].mean()
    for parameter in step.detector.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(DeadTermError, match="distillation term attention is not connected to the student"):
        step.train()(batch, at(1.0))


def test_a_stage_switches_terms_off_with_their_parameters(
    teacher: FrozenTeacher, tiny_model_config: MakeConfig, tiny_spec: GraphSpec, batch: dict[str, Any]
) -> None:
    step = step_of(teacher, tiny_model_config(), tiny_spec, all_losses()).train()
    stages = {(): set(), ("heatmap", "contrast"): {"heatmap", "contrast"}, ("feature",): {"feature"}}
    for terms, expected in {**stages, None: {"heatmap", "feature", "attention", "contrast"}}.items():
        stage = replace(ALL_ON, terms=terms)
        step.begin_stage(stage)
        losses = step(batch, at(0.5, stage))
        assert set(losses.weighted) == {"heatmap_loss", "box_loss"} | {f"{name}_kd_loss" for name in expected}
        assert set(losses.raw) == set(losses.weights) == expected
        for name, module in step.terms.items():
            assert all(value.requires_grad == stage.has_term(name) for value in module.parameters())
        assert all(value.requires_grad for value in step.detector.parameters())
