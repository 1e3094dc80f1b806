"""Heatmap distillation at pivotal positions."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_deploy.distill.processes import divisor


def heatmap_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target_heatmap: Tensor,
    *,
    temperature: float = 1.0,
    beyond_truth: float = 0.0,
) -> Tensor:
    """Squared difference of probabilities where the teacher is confident near an object.

    The weight of a cell is the teacher's highest class probability times the ground truth's Gaussian, so that empty
    ground does not drown the objects; the sum is divided by the sum of the weights.

    Args:
        student_logits: [B, K, Y, X].
        teacher_logits: [B, K, Y, X] in the student's class order, before any sigmoid.
        target_heatmap: [B, K, Y, X] Gaussians of the ground truth.
        temperature: both networks' logits are divided by it.
        beyond_truth: what stands in for the Gaussian where it is lower, 0..1. At 0 the teacher is not heard where the
            ground truth has nothing; at 1 it is heard wherever it is confident, its false positives included.

    Returns:
        Scalar; 0 when both networks agree.

    Source: SparseKD (arXiv 2205.15156), pivotal position logit KD; its code sums over classes, as here.
    """
    student = torch.sigmoid(student_logits.float() / temperature)
    teacher = torch.sigmoid(teacher_logits.detach().float() / temperature)
    near_object = target_heatmap.amax(dim=1).clamp(min=beyond_truth)
    weight = teacher.amax(dim=1) * near_object  # [B, Y, X]
    difference = ((student - teacher) ** 2).sum(dim=1)
    return (difference * weight).sum() / divisor(weight.sum())
