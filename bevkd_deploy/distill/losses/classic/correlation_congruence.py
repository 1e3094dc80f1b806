"""Correlation congruence (CC): how samples of a batch stand to one another."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic.checks import check_batch, check_same_shape
from bevkd_deploy.distill.losses.classic.embedding import LinearEmbedding
from bevkd_deploy.distill.losses.precision import full_precision


class CorrelationCongruenceLoss(nn.Module):
    """Products of the absolute errors of neighbouring samples, summed over channels, averaged over the neighbours.

    Without arguments it compares vectors of one size as they are. With `student_dim` and `teacher_dim` both go
    through a trained linear embedding first, as in RepDistiller's script. A batch of one has no neighbours:
    DistillError.

    Source: Peng et al. 2019 (arXiv 1904.01802); the authors' code as RepDistiller has it (weight 0.02).
    """

    def __init__(self, student_dim: int | None = None, teacher_dim: int | None = None, feature_dim: int = 128) -> None:
        super().__init__()
        if (student_dim is None) != (teacher_dim is None):
            raise DistillError("give both student_dim and teacher_dim (embeddings are trained) or neither")
        self.embed_s: nn.Module = nn.Identity()
        self.embed_t: nn.Module = nn.Identity()
        if student_dim is not None and teacher_dim is not None:
            self.embed_s = LinearEmbedding(student_dim, feature_dim, unit_length=False)
            self.embed_t = LinearEmbedding(teacher_dim, feature_dim, unit_length=False)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Vectors [B, Ds] and [B, Dt], B at least 2 -> scalar, 0 when the embedded vectors are equal."""
        student, teacher = self.embed_s(student), self.embed_t(teacher.detach())
        check_same_shape(student, teacher)
        check_batch(student, teacher, smallest=2)
        error = (student - teacher).abs()
        return (error[:-1] * error[1:]).flatten(1).sum(dim=1).mean()
