"""Factor transfer (FT): what is left of a map after paraphrasing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from bevkd_deploy.distill.losses.classic.checks import check_batch, check_maps, pool_to_smaller
from bevkd_deploy.distill.losses.precision import full_precision


class FactorTransferLoss(nn.Module):
    """Mean of |difference|^p2 of unit-length factors, the channel means of the features' p1-th powers.

    In the paper the teacher's map has gone through a paraphraser (an autoencoder of half the channels, trained
    beforehand) and the student's through a translator; both are the caller's. The larger map is averaged down.

    Source: Kim et al. 2018 (arXiv 1802.04977), eq. 5; RepDistiller's form (weight 200).
    """

    def __init__(self, p1: float = 2, p2: float = 1) -> None:
        super().__init__()
        self.p1 = p1
        self.p2 = p2

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [B, Cs, Hs, Ws] and [B, Ct, Ht, Wt] -> scalar, 0 when the factors agree."""
        check_maps(student, teacher)
        check_batch(student, teacher)
        student, teacher = pool_to_smaller(student, teacher.detach())
        difference = self._factor(student) - self._factor(teacher)
        return (difference.abs() if self.p2 == 1 else difference.pow(self.p2)).mean()

    def _factor(self, features: Tensor) -> Tensor:
        return normalize(features.pow(self.p1).mean(dim=1).flatten(1))  # [B, H * W]
