"""Flow of solution procedure (FSP): how one map turns into the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.classic.checks import check_lists, check_maps, check_same_shape, pool_to_smaller
from bevkd_deploy.distill.losses.precision import full_precision


class FlowOfSolutionLoss(nn.Module):
    """Mean squared difference of the Gram matrices between adjacent maps, averaged over cells.

    Of each two maps the larger is averaged down; student and teacher must agree in channels, not in size. The
    authors train with this alone for a first stage.

    Source: Yim et al. 2017 (CVPR, "A Gift from Knowledge Distillation"), eq. 1 and 2; RepDistiller's form (weight 50).
    """

    def __init__(
        self,
        student_shapes: Sequence[Sequence[int]] | None = None,
        teacher_shapes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Where shapes [B, C, H, W] are given, channels are checked at once and not in the first step."""
        super().__init__()
        if student_shapes is not None and teacher_shapes is not None:
            channels = [[shape[1] for shape in shapes] for shapes in (student_shapes, teacher_shapes)]
            if channels[0] != channels[1]:
                raise DistillError(f"student and teacher must have the same channels, got {channels[0]}, {channels[1]}")

    @full_precision
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, H, W], shallow to deep, at least two -> one value per adjacent pair, to be summed."""
        check_lists(student, teacher, smallest=2)
        check_maps(*student, *teacher)
        values = []
        for own, target in zip(_flows(student), _flows([item.detach() for item in teacher]), strict=True):
            check_same_shape(own, target)
            values.append((own - target).pow(2).mean())
        return torch.stack(values)


def _flows(maps: Sequence[Tensor]) -> list[Tensor]:
    """[B, C of the later map, C of the earlier map] for each adjacent pair."""
    flows = []
    for earlier, later in pairwise(maps):
        earlier, later = pool_to_smaller(earlier, later)
        cells = later.shape[2] * later.shape[3]
        flows.append(later.flatten(2) @ earlier.flatten(2).transpose(1, 2) / cells)
    return flows
