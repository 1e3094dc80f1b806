"""Heatmap, attention and feature losses against hand-worked and published values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.distill.losses.attention import attention_map, attention_transfer_loss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss, standardize
from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss


def closed_form(function: object, step: float, shape: tuple[int, ...]) -> Tensor:
    return function(step * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)


def test_heatmap_kd_is_zero_when_both_agree() -> None:
    logits = torch.randn(2, 3, 4, 5)
    assert heatmap_kd_loss(logits, logits.clone(), torch.rand(2, 3, 4, 5)) == 0


def test_heatmap_kd_of_two_cells() -> None:
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[math.log(9), math.log(4)]]]])  # 0.5; 0.9 and 0.8
    weights = 0.9 * 1.0, 0.8 * 0.5  # teacher's probability times the Gaussian
    expected = (0.4**2 * weights[0] + 0.3**2 * weights[1]) / sum(weights)
    loss = heatmap_kd_loss(student, teacher, torch.tensor([[[[1.0, 0.5]]]]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_heatmap_kd_weighs_by_the_surest_class_and_sums_over_classes() -> None:
    student = torch.zeros(1, 2, 1, 2)
    teacher = torch.tensor([math.log(9), math.log(4), 0.0, 0.0]).view(1, 2, 2, 1).transpose(2, 3)
    gaussians = torch.tensor([0.2, 0.0, 1.0, 0.6]).view(1, 2, 1, 2)
    weights = 0.9 * 1.0, 0.8 * 0.6
    expected = (0.16 * weights[0] + 0.09 * weights[1]) / sum(weights)
    assert heatmap_kd_loss(student, teacher, gaussians).item() == pytest.approx(expected, rel=1e-5)


def test_heatmap_kd_without_objects_is_zero_and_finite() -> None:
    student = torch.randn(1, 2, 3, 4, requires_grad=True)
    loss = heatmap_kd_loss(student, torch.randn(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_heatmap_kd_divides_by_at_least_one() -> None:
    loss = heatmap_kd_loss(
        torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), math.log(9)), torch.full((1, 1, 1, 1), 0.1)
    )
    assert loss.item() == pytest.approx(0.16 * 0.09)


def test_attention_transfer_equals_the_published_value() -> None:
    """RepDistiller's AT (p = 2) on these maps, in float64; it averages over the 36 cells where this one sums."""
    student, teacher = closed_form(torch.sin, 0.37, (4, 8, 6, 6)), closed_form(torch.cos, 0.53, (4, 8, 6, 6))
    loss = attention_transfer_loss(student, teacher)
    assert loss.item() / 36 == pytest.approx(0.003502779363, rel=1e-5)


def test_attention_is_the_normalised_energy() -> None:
    features = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]])  # energies (1 + 1) / 2 and (0 + 4) / 2
    assert attention_map(features).tolist() == [pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])]
    other = torch.tensor([[[[1.0, 0.0]]]])
    expected = (1 / math.sqrt(5) - 1) ** 2 + 4 / 5
    assert attention_transfer_loss(features, other).item() == pytest.approx(expected)


def test_attention_ignores_scale_and_channel_count_and_averages_the_batch() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 4, 5, 6)
    assert attention_transfer_loss(features, features.repeat(1, 2, 1, 1) * 7) < 1e-12
    other = torch.randn(3, 2, 5, 6)
    single = [attention_transfer_loss(features[i : i + 1], other[i : i + 1]) for i in range(3)]
    assert attention_transfer_loss(features, other).item() == pytest.approx(sum(single).item() / 3)
    with pytest.raises(ValueError, match=r"same cells, got \[5, 6\], \[4, 6\]"):
        attention_transfer_loss(features, other[:, :, :4])


def test_attention_on_objects_by_hand() -> None:
    """Energies 4 and 1, weights 1 and 0.5 + 0.1 against energies 1 and 1."""
    student, teacher = torch.tensor([[[[2.0, 1.0]]]]), torch.ones(1, 1, 1, 2)
    gaussians = torch.tensor([0.9, 0.5, 0.2, 0.1]).view(1, 2, 1, 2)
    weights = (0.9 + 0.1, 0.5 + 0.1)
    norms = math.hypot(4 * weights[0], weights[1]), math.hypot(*weights)
    expected = (4 * weights[0] / norms[0] - weights[0] / norms[1]) ** 2
    expected += (weights[1] / norms[0] - weights[1] / norms[1]) ** 2
    assert attention_transfer_loss(student, teacher, gaussians, background=0.1).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"same cells, got \[1, 2\], \[1, 2\], \[1, 1\]"):
        attention_transfer_loss(student, teacher, gaussians[..., :1])


def test_attention_on_objects_without_objects_is_zero() -> None:
    student = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = attention_transfer_loss(student, torch.randn(2, 3, 4, 5), torch.zeros(2, 1, 4, 5))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_standardised_channels_have_no_mean_and_unit_deviation() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 5) * torch.tensor([1.0, 50.0, 0.1]).view(1, 3, 1, 1) + 7
    done = standardize(features)
    assert done.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert done.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert not standardize(torch.full((1, 1, 2, 2), 3.0)).any()


def identity_loss(background: float) -> FeatureImitationLoss:
    loss = FeatureImitationLoss(2, 2, background)
    nn.init.eye_(loss.projector.conv.weight.data.view(2, 2))
    return loss


def test_features_that_differ_in_scale_and_offset_alone_cost_nothing() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 2, 4, 5)
    scaled = features * torch.tensor([3.0, 0.5]).view(1, 2, 1, 1) - 4
    assert identity_loss(0.1)(scaled, features, torch.rand(2, 1, 4, 5)).item() < 1e-6
    assert identity_loss(0.1)(-scaled, features, torch.rand(2, 1, 4, 5)).item() > 1  # opposite: 2 a cell


def test_feature_loss_of_four_cells() -> None:
    student = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    teacher = torch.tensor([1.0, -1.0, -1.0, 1.0]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    gaussians = torch.zeros(1, 3, 2, 2)
    gaussians[0, 1, 1, 0] = 0.9
    # The lower cells differ by 2 in each channel: 2^2 / 2 = 2 a cell, with weights 0.1 + 0.9 and 0.1.
    expected = (2 * 1.0 + 2 * 0.1) / (0.1 + 0.1 + 1.0 + 0.1)
    assert identity_loss(0.1)(student, teacher, gaussians).item() == pytest.approx(expected, rel=1e-4)


def test_feature_loss_teaches_student_and_projector_but_not_the_teacher() -> None:
    torch.manual_seed(0)
    loss = FeatureImitationLoss(3, 5, 0.1)
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 5, 4, 5)
    loss(student, teacher, torch.rand(2, 1, 4, 5)).backward()
    assert student.grad.any()
    assert loss.projector.conv.weight.grad.any()
    assert not teacher.requires_grad


def test_feature_loss_with_objects_weighed_by_their_area() -> None:
    """An object of two cells, one of one cell, three cells of ground; the third and the fourth cell differ, by 2."""
    student = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 3).repeat(1, 2, 1, 1)
    teacher = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0]).view(1, 1, 2, 3).repeat(1, 2, 1, 1)
    area = torch.tensor([0.0, 0.5, 0.5, 1.0, 0.0, 0.0]).view(1, 1, 2, 3)
    loss = FeatureImitationLoss(2, 2, 0.3, "box_area")
    nn.init.eye_(loss.projector.conv.weight.data.view(2, 2))
    # Ground weighs 0.3 * 2 objects in all.
    expected = 2 * (0.5 + 1.0) / (2 + 0.3 * 2)
    assert loss(student, teacher, area).item() == pytest.approx(expected, rel=1e-4)
    # The ground cell that differs weighs a third of all ground; without objects all six cells weigh the same.
    moved = torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0, 1.0]).view(1, 1, 2, 3)
    assert loss(student, teacher, moved).item() == pytest.approx(2 * (0.5 + 0.2) / 2.6, rel=1e-4)
    assert loss(student, teacher, torch.zeros(1, 1, 2, 3)).item() == pytest.approx(2 * 2 / 6, rel=1e-4)


def test_feature_loss_of_objects_alone_is_zero_where_there_are_none() -> None:
    student = torch.randn(1, 2, 3, 4, requires_grad=True)
    loss = identity_loss(0.0)(student, torch.randn(1, 2, 3, 4), torch.zeros(1, 5, 3, 4))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()
