"""Which cells of a BEV map lie inside which object, worked out from the head's training targets."""

from __future__ import annotations

import torch
from torch import Tensor

Targets = dict[str, Tensor]


def object_footprints(targets: Targets, shape_yx: tuple[int, int], cell_m: float) -> Tensor:
    """Cells whose centre lies inside the rotated box of each object, and always the cell that holds its centre.

    Args:
        targets: heatmap [B, K, Y, X], cell and label [B, O], values [B, O, 10], as `data.targets` makes them.
        shape_yx: rows and columns of the map, which covers the range of the heatmap at any resolution.
        cell_m: side of the heatmap's cells.

    Returns:
        bool [B, N, rows, columns], N being the most objects in a frame.
    """
    real = targets["label"] >= 0
    count = int(real.sum(dim=1).max())
    cell, values = targets["cell"][:, :count], targets["values"][:, :count]
    rows, columns = shape_yx
    heatmap_rows, heatmap_columns = targets["heatmap"].shape[-2:]
    scale = rows / heatmap_rows  # of the map's cells to the heatmap's
    x = (cell % heatmap_columns + values[..., 0]) * (columns / heatmap_columns)  # [B, N], in cells of the map
    y = (cell // heatmap_columns + values[..., 1]) * scale
    half = values[..., 3:5].exp() / 2 / cell_m * scale
    dx = torch.arange(columns, device=x.device) + 0.5 - x[..., None]  # [B, N, columns]
    dy = torch.arange(rows, device=y.device) + 0.5 - y[..., None]  # [B, N, rows]
    sine, cosine = values[..., 6, None, None], values[..., 7, None, None]
    along = dx[:, :, None] * cosine + dy[..., None] * sine  # [B, N, rows, columns]
    across = dy[..., None] * cosine - dx[:, :, None] * sine
    inside = (along.abs() <= half[..., 0, None, None]) & (across.abs() <= half[..., 1, None, None])
    center = (dx.abs() <= 0.5)[:, :, None] & (dy.abs() <= 0.5)[..., None]
    return (inside | center) & real[:, :count, None, None]


def inverse_area(footprints: Tensor) -> Tensor:
    """One over the number of cells of the object that a cell belongs to, 0 outside: [B, N, Y, X] -> [B, 1, Y, X].

    Every object then weighs the same, however large. Where objects overlap, the smaller one counts.

    Source: FGD (arXiv 2111.11837), scale mask; on BEV maps in DistillBEV (arXiv 2309.15109).
    """
    if not footprints.shape[1]:
        return footprints.new_zeros((len(footprints), 1, *footprints.shape[2:]), dtype=torch.float32)
    size = footprints.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return (footprints / size).amax(dim=1, keepdim=True)


def owners(footprints: Tensor) -> Tensor:
    """Number of the object that each cell belongs to, -1 for none: bool [B, N, Y, X] -> int64 [B, Y, X].

    Where objects overlap, the smaller one owns the cell.
    """
    if not footprints.shape[1]:
        return torch.full_like(footprints[:, :1].sum(dim=1), -1)
    size = footprints.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    share, owner = (footprints / size).max(dim=1)
    return torch.where(share > 0, owner, -1)
