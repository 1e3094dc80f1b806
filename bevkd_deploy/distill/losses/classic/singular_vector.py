"""Distillation by singular value decomposition (KDSVD): how the leading directions of adjacent maps relate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic.checks import check_batch, check_lists, check_maps
from bevkd_deploy.distill.losses.precision import full_precision

_SPARE = 3  # student vectors beyond k among which the teacher's are looked for
_TWICE_SQUARED_WIDTH = 8.0  # of the radial basis function


class SingularVectorLoss(nn.Module):
    """Squared difference of radial basis functions between the channel directions of adjacent maps.

    The k leading right singular vectors of each teacher map, weighted by its normalised singular values, are matched
    with the student's k + 3 leading ones; a match is turned to the teacher's sign. The value depends on the
    signs that the library's SVD gives the teacher's vectors, as in the original; it is 0 at equality for any of them.

    Source: Lee et al. 2018 (ECCV, "Self-supervised Knowledge Distillation Using Singular Value Decomposition");
    RepDistiller's form, for maps of any height and width (it has no weight in its scripts; mdistiller takes 1).
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.k = k

    @full_precision
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, H, W], shallow to deep, at least two -> one value per adjacent pair, to be summed.

        Student and teacher must agree in the channels of each map, not in height and width.
        """
        check_lists(student, teacher, smallest=2)
        check_maps(*student, *teacher)
        directions = [self._directions(*pair) for pair in zip(student, teacher, strict=True)]
        values = []
        for (own_before, target_before), (own, target) in pairwise(directions):
            difference = _closeness(own_before, own) - _closeness(target_before, target)
            values.append(difference.pow(2).sum() / len(own))
        return torch.stack(values)

    def _directions(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Matched leading directions of both maps, [B, C, k] each."""
        check_batch(student, teacher)
        if student.shape[1] != teacher.shape[1]:
            raise DistillError(
                f"student and teacher must have the same channels, got {student.shape[1]} and {teacher.shape[1]}; "
                "put a projector on the student"
            )
        with torch.no_grad():
            _, values, rows = torch.linalg.svd(_by_cell(teacher), full_matrices=False)
            target = rows[:, : self.k].transpose(1, 2)
            weight = normalize(values[:, : self.k], dim=1)[:, None]
        vectors: Tensor = _RightSingularVectors.apply(_by_cell(student))  # type: ignore[no-untyped-call]
        return _match(vectors[:, :, : self.k + _SPARE], target) * weight, target * weight


def _by_cell(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)  # [B, H * W, C]


def _match(vectors: Tensor, target: Tensor) -> Tensor:
    """For each target vector the most parallel one, with the target's sign: [B, C, n], [B, C, k] -> [B, C, k]."""
    with torch.no_grad():
        cosine = vectors.transpose(1, 2) @ target  # [B, n, k]
        nearest = cosine.abs().argmax(dim=1, keepdim=True)  # [B, 1, k]
        sign = cosine.gather(1, nearest).sign()
    return vectors.gather(2, nearest.expand(-1, vectors.shape[1], -1)) * sign


def _closeness(earlier: Tensor, later: Tensor) -> Tensor:
    """Radial basis function of all pairs of entries: [B, C1, k], [B, C2, k] -> [B, C2, C1, k]."""
    return (-(later[:, :, None] - earlier[:, None]).pow(2) / _TWICE_SQUARED_WIDTH).exp()


class _RightSingularVectors(torch.autograd.Function):
    """V of the reduced SVD of [B, N, C] as [B, C, min(N, C)], with a gradient that is always finite.

    The exact gradient divides by the gaps between squared singular values. Where a gap is lost in rounding, the
    vectors may turn freely within their plane and that part of the gradient means nothing: it is 0 here, where
    PyTorch's own is infinite or noise. Maps of low rank (constant or dead channels) are the common case.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
        vectors: Tensor = rows.transpose(1, 2)
        ctx.save_for_backward(matrix, values, vectors)
        return vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        matrix, values, vectors = ctx.saved_tensors
        (gradient,) = gradients
        squared = values.pow(2)  # [B, r], the eigenvalues of matrix^T matrix
        lost = squared[:, :1] * (torch.finfo(matrix.dtype).eps * max(matrix.shape[1:]))
        within = vectors.transpose(1, 2) @ gradient  # [B, r, r]
        turning = within * _safe_inverse(squared[:, None] - squared[:, :, None], lost[:, :, None])
        leaving = (gradient - vectors @ within) * _safe_inverse(squared, lost)[:, None]
        of_gram = (vectors @ turning + leaving) @ vectors.transpose(1, 2)  # [B, C, C]
        result: Tensor = matrix @ (of_gram + of_gram.transpose(1, 2))
        return result


def _safe_inverse(value: Tensor, lost: Tensor) -> Tensor:
    kept = value.abs() > lost
    return torch.where(kept, value, 1).reciprocal() * kept
