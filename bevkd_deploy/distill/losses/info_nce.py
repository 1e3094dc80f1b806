"""Symmetric InfoNCE between student and teacher vectors, as in CLIP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.gathering import gather_rows, gather_rows_with_gradient
from bevkd_deploy.distill.losses.precision import full_precision

#: The largest factor that CLIP lets logits have.
_LARGEST_SCALE = 100.0


class InfoNCELoss(nn.Module):
    """Each student row must pick its teacher row among all rows of the batch, and each teacher row its student row.

    Rows of all processes count: value and (after DDP's averaging) gradient are those of one process with the whole
    batch. With `learned` the logit scale is trained, as its logarithm, and kept within 1 and 100.

    With a single row in all processes there is nothing to pick among: the value would be 0 without gradient, so this
    raises DistillError. A few whole scenes are nearly as easy to tell apart; contrast over cells does not depend on
    the batch size.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3 and section 2.5.
    """

    def __init__(self, temperature: float = 0.07, *, learned: bool = False) -> None:
        super().__init__()
        lowest, highest = (1 / _LARGEST_SCALE, 1.0) if learned else (0.0, math.inf)
        if not (lowest <= temperature <= highest and temperature > 0):
            raise DistillError(f"temperature must be above 0, between 0.01 and 1 if learned, got {temperature}")
        self.temperature = temperature
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature))) if learned else None

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Vectors [B, D] and [B, D], any length, row by row of the same samples -> scalar."""
        students, teachers = gathered_pair(student, teacher)
        logits = self._scale() * students @ teachers.T
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    def _scale(self) -> Tensor | float:
        if self.logit_scale is None:
            return 1 / self.temperature
        if self.training:
            # Here and not in the optimizer's step, so that every user of the loss has it; a clamp in the graph would
            # leave a scale beyond the limit without gradient.
            with torch.no_grad():
                self.logit_scale.clamp_(0, math.log(_LARGEST_SCALE))
        return self.logit_scale.exp()


def gathered_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-length rows of all processes, gradient for this process's student rows.

    Raises:
        DistillError: the shapes differ, or all processes together have a single row, which has no negatives.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise DistillError(
            f"student and teacher must be vectors [B, D] of one shape, got {list(student.shape)} and "
            f"{list(teacher.shape)}; put projectors in front"
        )
    students = gather_rows_with_gradient(normalize(student, dim=1))
    teachers = gather_rows(normalize(teacher, dim=1))
    if len(students) < 2:
        raise DistillError(
            f"contrast within the batch got {len(students)} row in all processes together: without negatives its "
            "value is 0 and it teaches nothing; use a batch of at least 2 or the dense contrast over cells"
        )
    return students, teachers
