"""Similarity-preserving distillation (SP): which samples of a batch excite a network alike."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from bevkd_deploy.distill.losses.classic.checks import check_batch
from bevkd_deploy.distill.losses.precision import full_precision


class SimilarityPreservingLoss(nn.Module):
    """Mean squared difference of the row-normalised Gram matrices of a batch.

    Sizes of student and teacher may differ. A batch of one has only itself to be like: DistillError.

    Source: Tung and Mori 2019 (arXiv 1907.09682), eq. 4; RepDistiller's form (weight 3000).
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] and [B, ...], B at least 2 -> scalar, 0 when the similarities agree."""
        check_batch(student, teacher, smallest=2)
        return (_similarity(teacher.detach()) - _similarity(student)).pow(2).mean()


def _similarity(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return normalize(rows @ rows.T)  # [B, B]
