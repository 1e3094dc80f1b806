"""Contrastive representation distillation (CRD), literally: two banks, noise-contrastive estimation."""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic.checks import check_batch
from bevkd_deploy.distill.losses.classic.contrast_index import any_negatives
from bevkd_deploy.distill.losses.classic.contrast_memory import ContrastMemory
from bevkd_deploy.distill.losses.classic.embedding import LinearEmbedding
from bevkd_deploy.distill.losses.precision import full_precision

_EPS = 1e-7


class ContrastiveRepresentationLoss(nn.Module):
    """Tell a sample's embedding by the other network from those of many other samples, in both directions.

    Both embeddings are trained: they belong into the optimizer. The banks take 2 * n_data * feature_dim floats; for
    cells of BEV maps, which are too many for banks, there is the dense contrast with a queue. Works at batch 1. In
    eval mode banks and constants stay as they are.

    Source: Tian et al. 2020 (arXiv 1910.10699), eq. 18, and its reference code (weight 0.8).
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        feature_dim: int,
        n_data: int,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        """Build embeddings and banks.

        Args:
            student_dim: size of the student's feature.
            teacher_dim: size of the teacher's feature.
            feature_dim: size of the embeddings; 128 in the paper.
            n_data: samples in the training set, rows of a bank.
            negatives: per sample, K in the paper.
            temperature: of the scores.
            momentum: share of a bank's row that stays when its sample comes by.
        """
        super().__init__()
        self.n_data = n_data
        self.negatives = negatives
        self.embed_s = LinearEmbedding(student_dim, feature_dim, unit_length=True)
        self.embed_t = LinearEmbedding(teacher_dim, feature_dim, unit_length=True)
        self.contrast = ContrastMemory(feature_dim, n_data, temperature, momentum)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, contrast_index: Tensor | None = None) -> Tensor:
        """Features and sample numbers -> scalar.

        Args:
            student: [B, ...] with student_dim entries a sample.
            teacher: [B, ...] with teacher_dim entries a sample.
            index: [B] int64, the samples' numbers in the training set.
            contrast_index: [B, negatives + 1] int64, column 0 the positive, from `ClassNegatives.draw`; without it
                negatives are drawn from the whole training set.
        """
        check_batch(student, teacher)
        if contrast_index is None:
            contrast_index = any_negatives(index, self.n_data, self.negatives)
        wanted = [len(student)], [len(student), self.negatives + 1]
        got = list(index.shape), list(contrast_index.shape)
        if got != wanted:
            raise DistillError(f"index and contrast_index must have shapes {wanted[0]}, {wanted[1]}, got {got}")
        device = student.device
        of_student, of_teacher = self.contrast(
            self.embed_s(student), self.embed_t(teacher.detach()), index.to(device), contrast_index.to(device)
        )
        return self._estimation(of_student) + self._estimation(of_teacher)

    def _estimation(self, likelihood: Tensor) -> Tensor:
        """Loss of telling data from noise: [B, K + 1] -> scalar."""
        noise = self.negatives / self.n_data
        positive = (likelihood[:, 0] / (likelihood[:, 0] + noise + _EPS)).log()
        negative = (noise / (likelihood[:, 1:] + noise + _EPS)).log()
        return -(positive.sum() + negative.sum()) / len(likelihood)
