"""Promises of every BEV loss: batch 1, empty frames, non-square maps, one-sided gradients, FP32 under any autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import ContrastLossConfig
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.distill.losses.attention import attention_transfer_loss
from bevkd_deploy.distill.losses.boxes import box_kd_loss
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss
from bevkd_deploy.distill.losses.footprints import inverse_area, object_footprints
from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss
from bevkd_deploy.distill.losses.quality_focal import quality_focal_kd_loss
from bevkd_deploy.distill.losses.scene import describe_scene
from bevkd_deploy.models.center_head import BOX_MAPS

Maps = dict[str, Tensor]
BOXES = [
    [-9.0, 7.0, 0.3, 10.0, 4.7, 3.2, -1.0, np.nan, np.nan],
    [5.3, -3.1, -0.7, 4.0, 2.0, 1.5, 2.2, 1.5, -0.5],
    [9.2, -8.7, 0.0, 0.6, 0.6, 1.8, 1.0, 0.0, 0.0],
]


def targets_of(spec: GraphSpec, counts: list[int]) -> Maps:
    """Frames with the first so many of the boxes, of classes 3, 0 and 7."""
    made = [center_targets(np.array(BOXES[:n]).reshape(-1, 9), np.array([3, 0, 7][:n]), spec, 1) for n in counts]
    return {key: torch.from_numpy(np.stack([frame[key] for frame in made])) for key in made[0]}


def maps_of(seed: int, batch: int, scale: float = 1.0) -> Maps:
    """Features and head maps of one network on 12 rows and 16 columns."""
    torch.manual_seed(seed)
    sizes = {"features": 6, "heatmap": 10, **BOX_MAPS}
    return {name: scale * torch.randn(batch, size, 12, 16) for name, size in sizes.items()}


def _feature(weighting: Any) -> Callable[[Maps, Maps, Maps], Tensor]:
    torch.manual_seed(0)
    term = FeatureImitationLoss(6, 6, 0.1, weighting)
    torch.nn.init.eye_(term.projector.conv.weight.data.view(6, 6))

    def loss(student: Maps, teacher: Maps, targets: Maps) -> Tensor:
        area = inverse_area(object_footprints(targets, (12, 16), 2.0))
        foreground = targets["heatmap"] if weighting == "gaussian" else area
        return term(student["features"], teacher["features"], foreground)

    return loss


def _contrast() -> Callable[[Maps, Maps, Maps], Tensor]:
    torch.manual_seed(0)
    term = DenseContrastLoss(6, 6, ContrastLossConfig(embedding_channels=4, cells_per_sample=32, queue_size=8)).eval()

    def loss(student: Maps, teacher: Maps, targets: Maps) -> Tensor:
        torch.manual_seed(0)  # of the cells
        seen = describe_scene(targets, student["heatmap"], teacher["heatmap"], (12, 16), cell_m=2.0,
                              hardness="disagreement")  # fmt: skip
        return term(student["features"], teacher["features"], seen)

    return loss


def _losses() -> dict[str, Callable[[Maps, Maps, Maps], Tensor]]:
    return {
        "heatmap": lambda s, t, g: heatmap_kd_loss(s["heatmap"], t["heatmap"], g["heatmap"], temperature=2.0),
        "quality_focal": lambda s, t, g: quality_focal_kd_loss(s["heatmap"], t["heatmap"], g["heatmap"]),
        "boxes": lambda s, t, g: box_kd_loss(s, t, t["heatmap"], g, peak_score=0.9),
        "attention": lambda s, t, g: attention_transfer_loss(s["features"], t["features"]),
        "attention on objects": lambda s, t, g: attention_transfer_loss(
            s["features"], t["features"], g["heatmap"], background=0.1
        ),
        "feature": _feature("gaussian"),
        "feature by area": _feature("box_area"),
        "contrast": _contrast(),
    }


NAMES = list(_losses())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [[3, 2], [3], [0, 2], [0], [0, 0]])
def test_values_and_gradients_are_finite_and_the_teacher_gets_none(
    tiny_spec: GraphSpec, name: str, counts: list[int]
) -> None:
    student, teacher = maps_of(1, len(counts)), maps_of(2, len(counts))
    for value in (*student.values(), *teacher.values()):
        value.requires_grad_()
    loss = _losses()[name](student, teacher, targets_of(tiny_spec, counts))
    assert loss.shape == () and torch.isfinite(loss) and loss >= 0
    loss.backward()
    assert all(value.grad is None for value in teacher.values())
    gradients = [value.grad for value in student.values() if value.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    if any(counts):
        assert loss > 0 and any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "contrast"])
def test_nothing_is_left_to_learn_from_a_teacher_like_the_student(tiny_spec: GraphSpec, name: str) -> None:
    """Contrast is no distance: it still tells cells apart."""
    student = maps_of(1, 2)
    loss = _losses()[name](
        student, {key: value.clone() for key, value in student.items()}, targets_of(tiny_spec, [3, 1])
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(tiny_spec: GraphSpec, name: str, dtype: torch.dtype) -> None:
    """Half-precision maps whose squares no float16 holds (300 ** 2 > 65504): the value is that of FP32."""
    targets = targets_of(tiny_spec, [3, 2])
    halves = [{key: value.to(dtype) for key, value in maps_of(seed, 2, 300.0).items()} for seed in (1, 2)]
    expected = _losses()[name](*[{key: value.float() for key, value in maps.items()} for maps in halves], targets)
    leaf = {key: value.requires_grad_() for key, value in halves[0].items()}
    with torch.autocast("cpu", dtype=dtype):
        loss = _losses()[name](leaf, halves[1], targets)
    assert loss.dtype == torch.float32
    # A projector is a layer of the student, so it rounds as the student's layers do.
    tolerance = 1e-3 if name.startswith("feature") else 1e-5
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in leaf.values() if value.grad is not None)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("attention", "contrast")])
def test_rows_and_columns_are_not_mixed_up(tiny_spec: GraphSpec, name: str) -> None:
    """An error in the cell of the bus, row 9 and column 3, costs more than one in row 3 and column 9."""
    targets, teacher = targets_of(tiny_spec, [1]), maps_of(1, 1)
    teacher["heatmap"] = teacher["heatmap"] * 0.1 - 1.0

    def loss_with_error_at(row: int, column: int) -> float:
        student = {key: value.clone() for key, value in teacher.items()}
        for value in student.values():
            value[:, :, row, column] += 2.0
        return _losses()[name](student, teacher, targets).item()

    assert loss_with_error_at(9, 3) > 2 * loss_with_error_at(3, 9)
