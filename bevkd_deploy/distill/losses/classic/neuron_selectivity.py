"""Neuron selectivity transfer (NST): the distribution of what channels respond to."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from bevkd_deploy.distill.losses.classic.checks import check_batch, check_maps, pool_to_smaller
from bevkd_deploy.distill.losses.precision import full_precision


class NeuronSelectivityLoss(nn.Module):
    """Squared maximum mean discrepancy of unit-length channel maps under the polynomial kernel (a . b)^2.

    Channel counts may differ; the larger map is averaged down to the smaller one.

    Source: Huang and Wang 2017 (arXiv 1707.01219), eq. 8 with d = 2, c = 0; RepDistiller's form (weight 50).
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [B, Cs, Hs, Ws] and [B, Ct, Ht, Wt] -> scalar, 0 when the channels are the same in any order."""
        check_maps(student, teacher)
        check_batch(student, teacher)
        student, teacher = (normalize(maps.flatten(2), dim=2) for maps in pool_to_smaller(student, teacher.detach()))
        within = _kernel(teacher, teacher) + _kernel(student, student)
        return within - 2 * _kernel(student, teacher)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the batch and all pairs of channels: [B, C1, HW], [B, C2, HW] -> scalar."""
    return (first @ second.transpose(1, 2)).pow(2).mean()
