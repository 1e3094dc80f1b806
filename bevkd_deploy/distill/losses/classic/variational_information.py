"""Variational information distillation (VID): how well the student's map predicts the teacher's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic.checks import check_batch, check_maps, pool_to_smaller
from bevkd_deploy.distill.losses.precision import full_precision


class VariationalInformationLoss(nn.Module):
    """Negative log likelihood (without its constant) of the teacher's map under a Gaussian per channel.

    The mean comes from the student's map through three trained 1x1 convolutions, the variance of each channel is
    trained. The larger map is averaged down to the smaller one. Not 0 at equality: it has no lower bound but that of
    the variance.

    Source: Ahn et al. 2019 (arXiv 1904.05835), eq. 5 and 6; RepDistiller's form (weight 1).
    """

    def __init__(
        self,
        student_channels: int,
        hidden_channels: int,
        teacher_channels: int,
        init_pred_var: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        """Build the regressor.

        Args:
            student_channels: of the map that predicts.
            hidden_channels: of the two inner layers; RepDistiller takes the teacher's.
            teacher_channels: of the map that is predicted.
            init_pred_var: variance at the start.
            eps: least variance.
        """
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, hidden_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, teacher_channels, 1, bias=False),
        )
        # Through softplus this is the wanted variance.
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), math.log(math.expm1(init_pred_var - eps))))
        self.eps = eps

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [B, Cs, Hs, Ws] and [B, Ct, Ht, Wt] -> scalar, may be negative."""
        check_maps(student, teacher)
        check_batch(student, teacher)
        if teacher.shape[1] != len(self.log_scale):
            raise DistillError(f"the teacher's map has {teacher.shape[1]} channels, expected {len(self.log_scale)}")
        student, teacher = pool_to_smaller(student, teacher.detach())
        variance = (softplus(self.log_scale) + self.eps).view(1, -1, 1, 1)
        mean: Tensor = self.regressor(student)
        squared_error = (mean - teacher).pow(2)
        return (squared_error / variance + variance.log()).mean() / 2
