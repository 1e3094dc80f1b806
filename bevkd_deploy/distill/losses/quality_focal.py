"""Heatmap distillation with the quality focal loss: the teacher's probabilities as soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_deploy.distill.processes import divisor

_CONFIDENT = 0.3  # teacher probabilities above it count as positives


def quality_focal_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target_heatmap: Tensor,
    *,
    beta: float = 2.0,
    beyond_truth: float = 0.0,
) -> Tensor:
    """Cross entropy with the teacher's probabilities, scaled by how far the student is from them.

    |p_student - p_teacher| ** beta * BCE(p_student, p_teacher), summed over classes and cells and divided by the number
    of the teacher's confident entries (probability above 0.3) among the cells that count.

    Args:
        student_logits: [B, K, Y, X].
        teacher_logits: [B, K, Y, X] in the student's class order, before any sigmoid.
        target_heatmap: [B, K, Y, X] Gaussians of the ground truth.
        beta: how strongly agreement silences a cell.
        beyond_truth: weight of a cell without any object's Gaussian, 0..1. At 0 the teacher is not heard where the
            ground truth has nothing; at 1 every cell counts alike, as in CRKD, false positives included.

    Returns:
        Scalar; 0 when both networks agree.

    Source: GFL (arXiv 2006.04388), eq. 3; as KD in CRKD (arXiv 2403.19104), whose positives are counted as here.
    """
    student_logits = student_logits.float()
    teacher = torch.sigmoid(teacher_logits.detach().float())
    distance = (torch.sigmoid(student_logits) - teacher).abs()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(student_logits, teacher, reduction="none")
    weight = (target_heatmap.amax(dim=1, keepdim=True) > 0).float().clamp(min=beyond_truth)  # [B, 1, Y, X]
    confident = ((teacher > _CONFIDENT) * weight).sum()
    return (distance.pow(beta) * entropy * weight).sum() / divisor(confident)
