"""Detection loss of the CenterPoint-style head."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_deploy.models.center_head import BOX_MAPS

#: Per-channel weights of the box term, in the order of BOX_MAPS; velocity at 0.2 as in CenterPoint's code weights.
CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
_BOX_WEIGHT = 0.25


def gaussian_focal_loss(logits: Tensor, target: Tensor, divisor: Tensor | None = None) -> Tensor:
    """CornerNet's focal loss on Gaussian heatmaps, divided by the number of peaks (arXiv 1808.01244, eq. 1).

    Args:
        logits: [B, K, Y, X].
        target: [B, K, Y, X], 1 exactly at object centres.
        divisor: scalar instead of the number of peaks, at least 1, of these targets.
    """
    logits = logits.float()
    probability = torch.sigmoid(logits)
    log_p = torch.nn.functional.logsigmoid(logits)
    log_not_p = torch.nn.functional.logsigmoid(-logits)
    peak = target.eq(1).float()
    positive = -(log_p * (1 - probability) ** 2 * peak).sum()
    negative = -(log_not_p * probability**2 * (1 - target) ** 4 * (1 - peak)).sum()
    return (positive + negative) / (peak.sum().clamp(min=1) if divisor is None else divisor)


def box_loss(
    maps: dict[str, Tensor], cell: Tensor, values: Tensor, mask: Tensor, divisor: Tensor | None = None
) -> Tensor:
    """Weighted L1 of the regressed maps at object cells, divided by the number of objects.

    Args:
        maps: the head's output.
        cell: int64 [B, O] flat indices.
        values: [B, O, 10] targets in the order of BOX_MAPS.
        mask: [B, O, 10].
        divisor: scalar instead of the number of objects, at least 1, of these targets.
    """
    regressed = torch.cat([maps[name] for name in BOX_MAPS], dim=1).float().flatten(2)  # [B, 10, YX]
    picked = torch.gather(regressed, 2, cell[:, None].expand(-1, regressed.shape[1], -1)).transpose(1, 2)
    weights = mask * mask.new_tensor(CODE_WEIGHTS)
    objects = mask[..., 0].sum().clamp(min=1) if divisor is None else divisor
    return ((picked - values).abs() * weights).sum() / objects


def object_counts(targets: dict[str, Tensor]) -> Tensor:
    """What the two terms are divided by: peaks of the heatmap and objects of some targets, [2]."""
    return torch.stack([targets["heatmap"].eq(1).float().sum(), targets["mask"][..., 0].sum()])


def detection_losses(maps: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both terms, weighted as CenterPoint weights them: heatmap 1, boxes 0.25.

    Args:
        maps: the head's output.
        targets: heatmap, cell, values and mask; where the batch is one part of a step, also `divisors` [2]: what each
            part divides by instead of its own `object_counts`, so that the mean over the parts is the whole's loss.
    """
    heatmap_divisor, box_divisor = targets.get("divisors", (None, None))
    heatmap = gaussian_focal_loss(maps["heatmap"], targets["heatmap"], heatmap_divisor)
    boxes = box_loss(maps, targets["cell"], targets["values"], targets["mask"], box_divisor)
    return {"heatmap_loss": heatmap, "box_loss": _BOX_WEIGHT * boxes}
