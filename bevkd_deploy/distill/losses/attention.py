"""Attention transfer on BEV maps."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_map(features: Tensor, weight: Tensor | None = None) -> Tensor:
    """Energy per cell, times a weight [B, Y, X], flattened and scaled to unit length: [B, C, Y, X] -> [B, Y * X]."""
    # The fused norm reads half-precision maps as they are and accumulates in FP32.
    wide = torch.promote_types(features.dtype, torch.float32)
    energy = torch.linalg.vector_norm(features, dim=1, dtype=wide).pow(2) / features.shape[1]
    if weight is not None:
        energy = energy * weight
    return torch.nn.functional.normalize(energy.flatten(1), dim=1)


def attention_transfer_loss(
    student: Tensor, teacher: Tensor, target_heatmap: Tensor | None = None, *, background: float = 0.0
) -> Tensor:
    """Squared distance of the attention maps, summed over cells, averaged over the batch.

    The sum (not the mean) over cells makes the scale independent of resolution: at 32x32 it is 1024 times the mean
    form, which is what the customary weight of 1000 compensates.

    Args:
        student: [B, Cs, Y, X].
        teacher: [B, Ct, Y, X], channels may differ.
        target_heatmap: [B, K, Y, X] Gaussians; with them only the attention on objects is compared: energies are
            weighed by `background` plus the Gaussian before they are normalised. None: all cells alike.
        background: weight of a cell without an object; of use with `target_heatmap` alone.

    Returns:
        Scalar; 0 when both networks agree, and without objects where `background` is 0.

    Raises:
        ValueError: the maps have different cells.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), activation-based transfer, p = 2.
    """
    shapes = [student.shape[-2:], teacher.shape[-2:]]
    if target_heatmap is not None:
        shapes.append(target_heatmap.shape[-2:])
    if len(set(shapes)) != 1:
        raise ValueError(f"maps must cover the same cells, got {', '.join(str(list(shape)) for shape in shapes)}")
    weight = None if target_heatmap is None else background + target_heatmap.float().amax(dim=1)
    difference = attention_map(student, weight) - attention_map(teacher.detach(), weight)
    return difference.pow(2).sum(dim=1).mean()
