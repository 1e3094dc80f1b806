"""NT-Xent between student and teacher vectors, as in SimCLR."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bevkd_deploy.distill.losses.info_nce import gathered_pair
from bevkd_deploy.distill.losses.precision import full_precision


class NTXentLoss(nn.Module):
    """Each of 2N rows must pick its counterpart of the other network among all 2N - 1 other rows.

    Unlike InfoNCE, rows of the same network are negatives too: 2N - 2 of them all told. Rows of all processes count:
    value and (after DDP's averaging) gradient are those of one process with the whole batch. A single row in all
    processes has no negatives: DistillError.

    Source: Chen et al. 2020 (arXiv 2002.05709), eq. 1; temperature 0.1 in its ImageNet experiments.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Vectors [B, D] and [B, D], any length, row by row of the same samples -> scalar."""
        students, teachers = gathered_pair(student, teacher)
        rows = torch.cat([students, teachers])
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        logits = (rows @ rows.T / self.temperature).masked_fill(itself, float("-inf"))
        counterpart = torch.arange(len(rows), device=rows.device).roll(len(students))
        return cross_entropy(logits, counterpart)
