"""Heatmap distillation at pivotal positions."""

from __future__ import annotations

import torch
from torch import Tensor


def heatmap_kd_loss(student_logits: Tensor, teacher_logits: Tensor, target_heatmap: Tensor) -> Tensor:
    """Squared difference of probabilities where the teacher is confident near an object.

    The weight of a cell is the teacher's highest class probability times the ground truth's Gaussian, so that empty
    ground does not drown the objects; the sum is divided by the sum of the weights.

    Args:
        student_logits: [B, K, Y, X].
        teacher_logits: [B, K, Y, X], before any sigmoid.
        target_heatmap: [B, K, Y, X] Gaussians.

    Returns:
        Scalar; 0 when both networks agree.

    Source: SparseKD (arXiv 2205.15156), pivotal position logit KD.
    """
    student = torch.sigmoid(student_logits.float())
    teacher = torch.sigmoid(teacher_logits.float())
    weight = teacher.amax(dim=1) * target_heatmap.amax(dim=1)  # [B, Y, X]
    difference = ((student - teacher) ** 2).sum(dim=1)
    return (difference * weight).sum() / weight.sum().clamp(min=1.0)
