"""Both loss terms by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.models.center_head import BOX_MAPS
from bevkd_deploy.models.detection_loss import box_loss, detection_losses, gaussian_focal_loss


def tensors(spec: GraphSpec, boxes: list[list[float]], labels: list[int]) -> dict[str, torch.Tensor]:
    stacked = np.array(boxes, dtype=np.float64).reshape(-1, 9)
    made = center_targets(stacked, np.array(labels, dtype=np.int64), spec, 2)
    return {key: torch.from_numpy(value)[None] for key, value in made.items()}


def maps_of(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """[1, 10, Y, X] as the head's regression maps."""
    return dict(zip(BOX_MAPS, values.split(list(BOX_MAPS.values()), dim=1), strict=True))


BOX = [5.3, -3.1, -0.7, 4.0, 2.0, 1.5, 2.2, 1.5, -0.5]
OTHER = [-9.0, 7.0, 0.3, 0.8, 0.7, 1.8, -1.0, 0.0, 0.4]


def test_focal_loss_of_two_cells() -> None:
    target = torch.tensor([[[[1.0, 0.5]]]])
    half = math.log(2) * 0.25
    loss = gaussian_focal_loss(torch.zeros(1, 1, 1, 2), target)
    assert loss.item() == pytest.approx(half + half * 0.5**4)
    # A confident error: probability 0.9 on the cell beside the peak.
    logits = torch.tensor([[[[0.0, math.log(9)]]]])
    expected = half - math.log(0.1) * 0.81 * 0.5**4
    assert gaussian_focal_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_is_divided_by_the_peaks() -> None:
    target = torch.tensor([[[[1.0, 1.0, 1.0]]]])
    assert gaussian_focal_loss(torch.zeros(1, 1, 1, 3), target).item() == pytest.approx(math.log(2) * 0.25)
    empty = gaussian_focal_loss(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    assert empty.item() == pytest.approx(3 * math.log(2) * 0.25)


def test_box_loss_weighs_velocity_by_a_fifth(tiny_spec: GraphSpec) -> None:
    targets = tensors(tiny_spec, [BOX], [3])
    values = torch.full((1, 10, 12, 16), 77.0)
    values[0, :, 4, 10] = targets["values"][0, 0] + 1.0
    arguments = maps_of(values), targets["cell"], targets["values"]
    assert box_loss(*arguments, targets["mask"]).item() == pytest.approx(8 + 2 * 0.2)
    targets["mask"][..., 8:] = 0
    assert box_loss(*arguments, targets["mask"]).item() == pytest.approx(8)
    assert detection_losses({**maps_of(values), "heatmap": targets["heatmap"]}, targets)["box_loss"].item() == (
        pytest.approx(2)
    )


def test_box_loss_is_the_mean_over_objects_of_the_batch(tiny_spec: GraphSpec) -> None:
    first, second = tensors(tiny_spec, [BOX, OTHER], [3, 7]), tensors(tiny_spec, [OTHER], [1])
    targets = {key: torch.cat([first[key], second[key]]) for key in first}
    values = torch.zeros(2, 10, 12, 16)
    values[0, :, 4, 10] = first["values"][0, 0] + 3.0  # only z is off: by 3
    values[0, :, 4, 10][[0, 1, 3, 4, 5, 6, 7, 8, 9]] -= 3.0
    for sample, slot in ((0, 1), (1, 0)):
        values[sample, :, 9, 3] = targets["values"][sample, slot]
    loss = box_loss(maps_of(values), targets["cell"], targets["values"], targets["mask"])
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_a_perfect_prediction_costs_next_to_nothing(tiny_spec: GraphSpec) -> None:
    targets = tensors(tiny_spec, [BOX, OTHER], [3, 7])
    values = torch.zeros(1, 10, 12, 16)
    for slot in (0, 1):
        cell = int(targets["cell"][0, slot])
        values[0, :, cell // 16, cell % 16] = targets["values"][0, slot]
    logits = torch.where(targets["heatmap"] == 1, 20.0, -20.0)
    losses = detection_losses({"heatmap": logits, **maps_of(values)}, targets)
    assert set(losses) == {"heatmap_loss", "box_loss"}
    assert losses["heatmap_loss"] < 1e-6
    assert losses["box_loss"] == 0


@pytest.mark.parametrize("boxes", [[BOX, OTHER], []])
def test_gradients_are_finite_with_and_without_objects(tiny_spec: GraphSpec, boxes: list[list[float]]) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(1, 10, 12, 16) * 50).requires_grad_()
    values = torch.randn(1, 10, 12, 16, requires_grad=True)
    losses = detection_losses({"heatmap": logits, **maps_of(values)}, tensors(tiny_spec, boxes, [3, 7][: len(boxes)]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0
    assert torch.isfinite(values.grad).all()
    assert (values.grad.abs().sum() > 0) == bool(boxes)
