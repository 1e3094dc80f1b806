"""Quality focal loss and the options of the pivotal loss, on cells worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss
from bevkd_deploy.distill.losses.quality_focal import quality_focal_kd_loss

#: Logits of probabilities 0.5; 0.9, 0.8 and 0.1.
STUDENT = torch.zeros(1, 1, 1, 3)
TEACHER = torch.tensor([math.log(9), math.log(4), -math.log(9)]).view(1, 1, 1, 3)
GAUSSIANS = torch.tensor([1.0, 0.0, 0.4]).view(1, 1, 1, 3)


def test_three_cells_by_hand() -> None:
    # At a probability of one half the cross entropy is log 2 whatever the target.
    log2 = math.log(2)
    everywhere = quality_focal_kd_loss(STUDENT, TEACHER, GAUSSIANS, beyond_truth=1.0)
    assert everywhere.item() == pytest.approx(log2 * (0.4**2 + 0.3**2 + 0.4**2) / 2)  # two teacher values above 0.3
    on_objects = quality_focal_kd_loss(STUDENT, TEACHER, GAUSSIANS)
    assert on_objects.item() == pytest.approx(log2 * (0.4**2 + 0.4**2) / 1)
    between = quality_focal_kd_loss(STUDENT, TEACHER, GAUSSIANS, beyond_truth=0.5)
    assert between.item() == pytest.approx(log2 * (0.4**2 + 0.5 * 0.3**2 + 0.4**2) / 1.5)
    linear = quality_focal_kd_loss(STUDENT, TEACHER, GAUSSIANS, beta=1.0)
    assert linear.item() == pytest.approx(log2 * (0.4 + 0.4))


def test_many_cells_against_numpy() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 3, 5, 7)), rng.normal(0, 2, (2, 3, 5, 7))
    gaussians = rng.uniform(0, 1, (2, 3, 5, 7)) * (rng.uniform(size=(2, 3, 5, 7)) > 0.8)
    p, q = 1 / (1 + np.exp(-student)), 1 / (1 + np.exp(-teacher))
    entropy = -(q * np.log(p) + (1 - q) * np.log(1 - p))
    inside = (gaussians.max(axis=1, keepdims=True) > 0).astype(float)
    expected = (np.abs(p - q) ** 2 * entropy * inside).sum() / max(1, ((q > 0.3) * inside).sum())
    arguments = [torch.tensor(array) for array in (student, teacher, gaussians)]
    assert quality_focal_kd_loss(*arguments).item() == pytest.approx(expected, rel=1e-5)


def test_the_pivotal_loss_is_deaf_beyond_the_truth_unless_asked() -> None:
    """The second cell is a false positive of the teacher: without it the value is that of the other two."""
    weights = 0.9 * 1.0, 0.1 * 0.4
    assert heatmap_kd_loss(STUDENT, TEACHER, GAUSSIANS).item() == pytest.approx(0.16 * sum(weights))
    assert heatmap_kd_loss(STUDENT, TEACHER, GAUSSIANS, beyond_truth=0.5).item() == pytest.approx(
        (0.16 * 0.9 + 0.09 * 0.8 * 0.5 + 0.16 * 0.1 * 0.5) / (0.9 + 0.4 + 0.05)
    )


def test_temperature_softens_both_sides() -> None:
    student, teacher = 2 * STUDENT + 1.0, 2 * TEACHER
    softened = heatmap_kd_loss(student, teacher, GAUSSIANS, temperature=2.0)
    assert softened.item() == pytest.approx(heatmap_kd_loss(STUDENT + 0.5, TEACHER, GAUSSIANS).item(), rel=1e-6)


def test_saturated_logits_are_finite() -> None:
    student = torch.tensor([-200.0, 200.0, 0.0]).view(1, 1, 1, 3).requires_grad_()
    loss = quality_focal_kd_loss(student, -student.detach(), torch.ones(1, 1, 1, 3))
    loss.backward()
    assert loss.item() == pytest.approx(400 / 2, rel=1e-3)  # 1 * 200 twice; the teacher is sure of one, half of another
    assert torch.isfinite(student.grad).all()
