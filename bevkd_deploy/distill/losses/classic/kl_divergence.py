"""Knowledge distillation (KD): softened class probabilities."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from bevkd_deploy.distill.losses.classic.checks import check_same_shape
from bevkd_deploy.distill.losses.precision import full_precision


class KLDivergenceLoss(nn.Module):
    """KL divergence of teacher from student at a temperature T, times T^2, summed and divided by the batch size.

    For classes that exclude one another (a softmax); detection heatmaps are independent sigmoids and have their own
    loss. RepDistiller's scripts use temperature 4.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2; RepDistiller's form.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits [B, K] and [B, K] -> scalar, 0 when the probabilities agree."""
        check_same_shape(student, teacher)
        log_probabilities = log_softmax(student / self.temperature, dim=1)
        target = softmax(teacher.detach() / self.temperature, dim=1)
        return kl_div(log_probabilities, target, reduction="sum") * (self.temperature**2 / len(student))
