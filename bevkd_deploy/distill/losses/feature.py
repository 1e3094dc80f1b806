"""Imitation of channel-standardised features, weighted towards objects."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bevkd_deploy.distill import processes
from bevkd_deploy.distill.batch_norm import standardize_over_processes
from bevkd_deploy.distill.projectors import ProjectorKind, build_projector

Weighting = Literal["gaussian", "box_area"]

#: So that a batch without objects and without background weight gives 0, not 0 / 0.
_LEAST_WEIGHT = 1e-6
_EPS = 1e-6


def cell_rows(features: Tensor) -> Tensor:
    """A map as rows of cells: [B, C, Y, X] -> [B * Y * X, C].

    Convolutions on a CPU leave maps with the channels last in memory; then this is a view. Rows keep that order through
    the backward pass too, where reductions over channels would otherwise hand the batch norm gradients in the other
    order, which takes it fifteen times as long.
    """
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def standardize(features: Tensor) -> Tensor:
    """Zero mean and unit deviation per channel: [B, C, Y, X] over batch and cells, or [N, C] over rows.

    With several processes over the batches of all of them.
    """
    if processes.count() > 1:
        return standardize_over_processes(features, _EPS)[0]
    # Batch statistics without scale and offset: the fused kernel takes a fifth of the time of mean and std.
    return nn.functional.batch_norm(features.float(), None, None, training=True, eps=_EPS)


class _WeightedSquares(torch.autograd.Function):
    """Sum over rows of weight times squared distance; the gradient goes to the first argument.

    Written out because maps of this size do not fit a CPU's cache: the three operations that it stands for read and
    allocate the map twice as often.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        """[N, C], [N, C] (overwritten) and [N] -> scalar."""
        difference = torch.sub(projected, wanted, out=wanted)
        ctx.save_for_backward(difference, weight)
        return torch.dot(torch.linalg.vector_norm(difference, dim=1).square_(), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Twice the weighted difference."""
        difference, weight = ctx.saved_tensors
        return difference * (2 * gradient * weight)[:, None], None, None


class FeatureImitationLoss(nn.Module):
    """Half the squared difference of standardised maps, after a student-side projector.

    Standardising removes scale and offset, which differ between networks of different width and carry no meaning. What
    a cell weighs is up to `weighting`; the sum is divided by the sum of the weights.

    - "gaussian": `background` plus the ground truth's Gaussian.
    - "box_area": one over the number of cells of the object's outline, so that large objects do not outvote small ones;
      all cells outside of objects together weigh `background` times as much as all objects together, and alike where
      there is no object.

    Source: PKD (arXiv 2207.02039), eq. 4; foreground weighting as in DistillBEV (arXiv 2309.15109); the area's weight
    is FGD's scale mask (arXiv 2111.11837).
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        background: float,
        weighting: Weighting = "gaussian",
        projector: ProjectorKind = "conv",
    ) -> None:
        super().__init__()
        self.projector = build_projector(projector, student_channels, teacher_channels)
        self.background = background
        self.weighting: Weighting = weighting

    def forward(self, student: Tensor, teacher: Tensor, foreground: Tensor) -> Tensor:
        """Compare two maps.

        Args:
            student: [B, Cs, Y, X].
            teacher: [B, Ct, Y, X].
            foreground: [B, K, Y, X], the Gaussians of the ground truth or, for "box_area",
                `footprints.inverse_area` [B, 1, Y, X].

        Returns:
            Scalar; 0 when the projected student is the teacher up to scale and offset of each channel.
        """
        projected = cell_rows(self.projector(student))  # a layer of the student: in its precision
        with torch.autocast(student.device.type, enabled=False):  # statistics and squares leave half precision
            projected, wanted = standardize(projected), standardize(cell_rows(teacher.detach()))
            weight = self._weight(foreground.float().amax(dim=1)).flatten()  # [B * Y * X]
            weight = weight / (2 * wanted.shape[1] * processes.divisor(weight.sum(), _LEAST_WEIGHT))
            distance: Tensor = _WeightedSquares.apply(projected, wanted, weight)  # type: ignore[no-untyped-call]
            return distance

    def _weight(self, foreground: Tensor) -> Tensor:
        """Weight of each cell [B, Y, X]."""
        if self.weighting == "gaussian":
            return self.background + foreground
        ground = (foreground == 0).float()
        objects = processes.mean_over_processes(foreground.sum())
        share = self.background * objects / processes.divisor(ground.sum())
        return torch.where(objects > 0, foreground + share * ground, ground)
