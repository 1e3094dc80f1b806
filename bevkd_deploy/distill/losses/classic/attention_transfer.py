"""Attention transfer (AT): where a network looks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from bevkd_deploy.distill.losses.classic.checks import check_batch, check_maps, pool_to_smaller
from bevkd_deploy.distill.losses.precision import full_precision


class AttentionTransferLoss(nn.Module):
    """Mean squared difference of unit-length attention maps, the channel means of the features' p-th powers.

    The larger map is averaged down to the smaller one. This is the authors' code, to which their weight of 1000
    belongs (their paper sums over channels and takes the unsquared distance); `losses/attention.py` is the same
    summed over cells, which does not depend on the resolution.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), section 3.1; RepDistiller's form.
    """

    def __init__(self, p: float = 2) -> None:
        super().__init__()
        self.p = p

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [B, Cs, Hs, Ws] and [B, Ct, Ht, Wt] -> scalar, 0 when both look at the same places."""
        check_maps(student, teacher)
        check_batch(student, teacher)
        student, teacher = pool_to_smaller(student, teacher.detach())
        return (self._attention(student) - self._attention(teacher)).pow(2).mean()

    def _attention(self, features: Tensor) -> Tensor:
        return normalize(features.pow(self.p).mean(dim=1).flatten(1))  # [B, H * W]
