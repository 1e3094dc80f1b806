"""The two memory banks of CRD: an embedding of every training sample from each network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bevkd_deploy.distill.gathering import gather_rows


class ContrastMemory(nn.Module):
    """Scores a batch against banked embeddings of the other network, then moves the batch's own rows on.

    Everything that changes is a buffer, so a state dict holds all of it: `memory_v1` (student) and `memory_v2`
    (teacher), [n_data, size], and the normalisation constants `z_v1` and `z_v2`, which the first batch fixes (-1
    until then). Rows of all processes are gathered for the update, so that the banks stay the same everywhere.

    Source: Tian et al. 2020 (arXiv 1910.10699), section 3.3 and its reference code, after Wu et al. 2018 (arXiv
    1805.01978).
    """

    memory_v1: Tensor
    memory_v2: Tensor
    z_v1: Tensor
    z_v2: Tensor

    def __init__(self, size: int, n_data: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        bound = 1 / math.sqrt(size / 3)
        for side in ("v1", "v2"):
            self.register_buffer(f"memory_{side}", torch.empty(n_data, size).uniform_(-bound, bound))
            self.register_buffer(f"z_{side}", torch.tensor(-1.0))

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, contrast_index: Tensor) -> tuple[Tensor, Tensor]:
        """Relative likelihoods of the positive (column 0) and the negatives.

        Args:
            student: [B, size], unit length.
            teacher: [B, size], unit length.
            index: [B] int64, the samples' numbers in the training set.
            contrast_index: [B, K + 1] int64, numbers of the positive and its negatives.

        Returns:
            [B, K + 1] of the student against the teacher's bank, and of the teacher against the student's.
        """
        of_student = self._scores(self.memory_v2, student, contrast_index)
        of_teacher = self._scores(self.memory_v1, teacher, contrast_index)
        of_student = of_student / self._constant("z_v1", of_student)
        of_teacher = of_teacher / self._constant("z_v2", of_teacher)
        if self.training:
            numbers = gather_rows(index)
            self._update(self.memory_v1, student, numbers)
            self._update(self.memory_v2, teacher, numbers)
        return of_student, of_teacher

    def _scores(self, bank: Tensor, anchor: Tensor, contrast_index: Tensor) -> Tensor:
        rows = bank[contrast_index]  # a copy: the bank changes before the backward pass
        return (torch.bmm(rows, anchor[:, :, None]).squeeze(2) / self.temperature).exp()

    @torch.no_grad()
    def _constant(self, name: str, scores: Tensor) -> Tensor:
        """The constant of earlier batches, or of this one if it is the first. Decided on the device: no wait."""
        constant: Tensor = getattr(self, name)
        fresh = gather_rows(scores.mean(dim=1)).mean() * len(self.memory_v1)
        chosen = torch.where(constant < 0, fresh, constant)
        if self.training:
            constant.copy_(chosen)
        return chosen

    @torch.no_grad()
    def _update(self, bank: Tensor, embedded: Tensor, numbers: Tensor) -> None:
        moved = bank[numbers] * self.momentum + gather_rows(embedded) * (1 - self.momentum)
        bank.index_copy_(0, numbers, nn.functional.normalize(moved, dim=1).to(bank.dtype))
