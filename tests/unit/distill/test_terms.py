"""Every term that a recipe can name, on frames of the tiny world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import DistillConfig, DistillLosses, PairLossConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.distill.pair_losses import build_pair_loss
from bevkd_deploy.distill.progress import Progress
from bevkd_deploy.distill.step import DistillationStep
from bevkd_deploy.distill.tap_report import TappedNetwork, report_taps
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher

PAIRS = get_args(PairLossConfig.model_fields["loss"].annotation)

END = Progress.at(1.0)

MakeStep = Callable[[dict[str, Any]], DistillationStep]


@pytest.fixture
def make_step(
    teacher_config: ModelConfig,
    tiny_model_config: Callable[..., ModelConfig],
    tiny_spec: GraphSpec,
    batch: dict[str, Any],
) -> MakeStep:
    def make(section: dict[str, Any]) -> DistillationStep:
        config = DistillConfig.model_validate({"warmup_fraction": 0.0, **section})
        spec = teacher_config.graph_spec(tiny_spec.cameras)
        teacher = FrozenTeacher(build_detector(teacher_config, spec, 1), spec)
        student = build_detector(tiny_model_config(), tiny_spec, 0)
        networks = (
            TappedNetwork.student(student, batch["inputs"]["student"]),
            TappedNetwork.teacher(teacher, batch["inputs"]["teacher"]),
        )
        taps = report_taps(*networks, config)
        torch.manual_seed(0)
        return DistillationStep(student, teacher, config, taps).train()

    return make


@pytest.mark.parametrize("loss", PAIRS)
def test_every_classic_loss_teaches_between_two_taps(make_step: MakeStep, batch: dict[str, Any], loss: str) -> None:
    if loss == "relational":  # two frames have one distance and no angle
        batch = doubled(batch)
    step = make_step({"losses": {"pairs": [{"loss": loss, "weight": 2.0}]}})
    losses = step(batch, END)
    name = f"pair_{loss}"
    assert losses.weighted[f"{name}_kd_loss"].item() == pytest.approx(2 * losses.raw[name].item())
    assert losses.gradient_norms[name] > 0
    step.eval()(batch, END)


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    """Every frame twice, the second time with its cells in another order, so that no two are alike."""

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor.flip(0)])

    inputs = {who: {k: twice(v) for k, v in named.items()} for who, named in batch["inputs"].items()}
    for named in inputs.values():
        named["images"] = named["images"].clone()
        named["images"][2:] = 255 - named["images"][2:]
    return {
        **batch,
        "inputs": inputs,
        "targets": {k: twice(v) for k, v in batch["targets"].items()},
        "position": [*batch["position"], *batch["position"]],
    }


def test_an_unknown_pair_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pair loss named crd"):
        build_pair_loss("crd", 4, 4)


def test_terms_of_pairs_are_named_after_their_loss() -> None:
    losses = DistillLosses.model_validate(
        {
            "heatmap": {"weight": 0},
            "feature": {},
            "pairs": [{"loss": "hint", "weight": 1}, {"loss": "hint", "weight": 2, "student": "fusion_layer"}],
        }
    )
    assert list(losses.enabled()) == ["feature", "pair_hint", "pair_hint_2"]


def test_a_pattern_sums_over_its_pairs(make_step: MakeStep, batch: dict[str, Any]) -> None:
    blocks = {"student": "pts_backbone.blocks.*", "teacher": "pts_backbone.blocks.*", "count": 2}
    both = make_step({"losses": {"attention": blocks}})(batch, END).raw["attention"]
    each = [
        make_step({"losses": {"attention": {"student": path, "teacher": path}}})(batch, END).raw["attention"]
        for path in ("pts_backbone.blocks.0", "pts_backbone.blocks.1")
    ]
    assert both.item() == pytest.approx(sum(value.item() for value in each), rel=1e-5)


def test_camera_maps_are_compared_pixel_by_pixel(make_step: MakeStep, batch: dict[str, Any]) -> None:
    """With batches of another size than the one that the taps were looked at with, every pixel counts alike."""
    image = {"student": "img_neck", "teacher": "img_neck", "space": "image"}
    step = make_step({"losses": {"feature": image, "attention": image}})
    losses = step(batch, END)
    assert set(losses.gradient_norms) == {"detection", "feature", "attention"}
    twice = step.eval()(doubled(batch), END)
    assert all(torch.isfinite(value) for value in twice.weighted.values())


def test_all_terms_together(make_step: MakeStep, batch: dict[str, Any]) -> None:
    section = {
        "losses": {
            "heatmap": {},
            "quality_focal": {},
            "boxes": {},
            "feature": {"weighting": "box_area", "projector": "mlp"},
            "attention": {"background": 0.1, "student": "pts_backbone[0]", "teacher": "pts_backbone[0]"},
            "contrast": {"cells_per_sample": 32, "queue_size": 48, "projector": "mlp"},
        },
        "labels": {"min_score": 0.05},
    }
    step = make_step(section)
    losses = step(batch, END)
    names = set(section["losses"])
    assert set(losses.raw) == names
    assert all(losses.gradient_norms[name] > 0 for name in names)
    sum(losses.weighted.values()).backward()
    assert all(parameter.grad is None for parameter in step.teacher.model.parameters())


def test_labels_of_the_teacher_reach_the_detection_loss_alone(make_step: MakeStep, batch: dict[str, Any]) -> None:
    plain = make_step({"losses": {"heatmap": {}}}).eval()(batch, END)
    step = make_step({"losses": {"heatmap": {}}, "labels": {"min_score": 0.0}}).eval()
    with_labels = step(batch, END)
    assert with_labels.weighted["heatmap_loss"] != plain.weighted["heatmap_loss"]
    assert with_labels.raw["heatmap"] == plain.raw["heatmap"]


def test_the_teacher_does_not_run_where_nothing_asks_for_it(make_step: MakeStep, batch: dict[str, Any]) -> None:
    step = make_step({"inherit": {}})
    without = {**batch, "inputs": {"student": batch["inputs"]["student"]}}
    assert set(step(without, END).weighted) == {"heatmap_loss", "box_loss"}
