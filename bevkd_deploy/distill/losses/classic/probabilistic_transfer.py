"""Probabilistic knowledge transfer (PKT): who is whose neighbour in a batch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.linalg import vector_norm

from bevkd_deploy.distill.losses.classic.checks import check_batch
from bevkd_deploy.distill.losses.precision import full_precision

_EPS = 1e-7


class ProbabilisticTransferLoss(nn.Module):
    """Mean of the entries of the KL divergence between row-normalised cosine similarities, moved to 0..1.

    Sizes of student and teacher may differ. A batch of one has only itself as a neighbour: DistillError.

    Source: Passalis and Tefas 2018 (arXiv 1803.10837), eq. 4 to 7; RepDistiller's form (weight 30000).
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] and [B, ...], B at least 2 -> scalar, 0 when the neighbourhoods agree."""
        check_batch(student, teacher, smallest=2)
        probabilities, target = _neighbours(student.flatten(1)), _neighbours(teacher.detach().flatten(1))
        return (target * ((target + _EPS) / (probabilities + _EPS)).log()).mean()


def _neighbours(rows: Tensor) -> Tensor:
    """[B, D] -> [B, B], rows add up to 1."""
    rows = rows / (vector_norm(rows, dim=1, keepdim=True) + _EPS)
    similarity = (rows @ rows.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)
