"""Relational knowledge distillation (RKD): distances and angles between the samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, smooth_l1_loss

from bevkd_deploy.distill.losses.classic.checks import check_batch
from bevkd_deploy.distill.losses.precision import full_precision

_LEAST_SQUARED_DISTANCE = 1e-12


class RelationalLoss(nn.Module):
    """Smooth L1 of distances relative to their mean, and of the cosines of the angles of all triples.

    Sizes of student and teacher may differ. Two samples have one distance and no
    angle, so nothing to be relative to: DistillError.

    Source: Park et al. 2019 (arXiv 1904.05068), eq. 4 to 9; RepDistiller's form and weights of the two parts.
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] and [B, ...], B at least 3 -> scalar, 0 when the relations agree."""
        check_batch(student, teacher, smallest=3)
        student, teacher = student.flatten(1), teacher.detach().flatten(1)
        distance = smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
        angle = smooth_l1_loss(_cosines(student), _cosines(teacher))
        return self.distance_weight * distance + self.angle_weight * angle


def _relative_distances(rows: Tensor) -> Tensor:
    """[B, D] -> [B, B]; 1 is the mean over pairs of different samples."""
    squares = rows.pow(2).sum(dim=1)
    squared = squares[:, None] + squares - 2 * rows @ rows.T
    distances = squared.clamp(min=_LEAST_SQUARED_DISTANCE).sqrt()
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    distances = distances.masked_fill(same, 0)
    return distances / (distances.sum() / (len(rows) * (len(rows) - 1)))


def _cosines(rows: Tensor) -> Tensor:
    """[B, D] -> [B, B, B]: of the angles at the first sample between the other two."""
    directions = normalize(rows[None] - rows[:, None], dim=2)
    return directions @ directions.transpose(1, 2)
