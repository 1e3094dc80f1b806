"""Attention transfer on BEV maps."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_map(features: Tensor) -> Tensor:
    """Energy per cell, flattened and scaled to unit length: [B, C, Y, X] -> [B, Y * X]."""
    energy = features.float().pow(2).mean(dim=1).flatten(1)
    return torch.nn.functional.normalize(energy, dim=1)


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the attention maps, summed over cells, averaged over the batch.

    The sum (not the mean) over cells makes the scale independent of resolution: at 32x32 it is 1024 times the mean
    form, which is what the customary weight of 1000 compensates.

    Args:
        student: [B, Cs, Y, X].
        teacher: [B, Ct, Y, X], channels may differ.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), activation-based transfer, p = 2.
    """
    if student.shape[-2:] != teacher.shape[-2:]:
        raise ValueError(f"maps must cover the same cells, got {list(student.shape)} and {list(teacher.shape)}")
    return (attention_map(student) - attention_map(teacher)).pow(2).sum(dim=1).mean()
