"""FitNet hints: the teacher's features themselves."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from bevkd_deploy.distill.losses.classic.checks import check_same_shape
from bevkd_deploy.distill.losses.precision import full_precision


class HintLoss(nn.Module):
    """Mean squared difference of two features of one shape; a projector brings the student's there.

    Source: Romero et al. 2015 (arXiv 1412.6550), eq. 3; RepDistiller's form (weight 100).
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features of one shape, [B, ...] -> scalar, 0 when they are equal."""
        check_same_shape(student, teacher)
        return mse_loss(student, teacher.detach())
