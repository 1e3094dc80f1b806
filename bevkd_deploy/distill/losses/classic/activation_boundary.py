"""Activation boundaries (AB): which neurons fire, not how strongly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic.checks import check_lists, check_same_shape
from bevkd_deploy.distill.losses.precision import full_precision


class ActivationBoundaryLoss(nn.Module):
    """Squared hinge on the student's pre-activations wherever the teacher's have the other sign.

    Summed over a map, divided by the batch size, times 3/1000; the deepest map counts 1, each one before it half of
    the next. The student is pushed past a margin, so equal maps give 0 only where all entries lie beyond it. The
    authors train with this alone for a first stage.

    Source: Heo et al. 2019 (arXiv 1811.03233), eq. 6; RepDistiller's form (weight 1).
    """

    def __init__(self, maps: int, margin: float = 1.0) -> None:
        super().__init__()
        self.maps = maps
        self.margin = margin

    @full_precision
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Pre-activations, shallow to deep, pairs of one shape [B, ...] -> one value per pair, to be summed."""
        check_lists(student, teacher)
        if len(student) != self.maps:
            raise DistillError(f"made for {self.maps} maps, got {len(student)}")
        values = []
        for index, (own, target) in enumerate(zip(student, teacher, strict=True)):
            check_same_shape(own, target)
            halvings = self.maps - 1 - index
            values.append(self._hinge(own, target.detach()) * (3 / 1000 / 2**halvings / len(own)))
        return torch.stack(values)

    def _hinge(self, student: Tensor, teacher: Tensor) -> Tensor:
        beyond = torch.where(teacher > 0, self.margin - student, self.margin + student)
        return beyond.clamp(min=0).pow(2).sum()
