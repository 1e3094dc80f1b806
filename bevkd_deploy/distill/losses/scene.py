"""What the cells of a BEV map show: objects, empty ground, and where the student errs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bevkd_deploy.distill.losses.footprints import Targets, object_footprints, owners

#: A cell whose Gaussian exceeds this is too near an object to count as background.
_NEAR_AN_OBJECT = 0.1
NO_CLASS = -1

Hardness = Literal["disagreement", "confidence"]


@dataclass(frozen=True)
class BevScene:
    """One batch of a BEV map, cell by cell.

    Attributes:
        instance: int64 [B, Y, X], object that a cell belongs to, counted within its frame; -1 for none.
        class_id: int64 [B, Y, X], the object's class, `NO_CLASS` for none.
        clear: bool [B, Y, X], no object is there or near.
        hardness: float32 [B, Y, X], how much a clear cell has to teach.
        cell_m: side of a cell.
    """

    instance: Tensor
    class_id: Tensor
    clear: Tensor
    hardness: Tensor
    cell_m: float


@torch.no_grad()
def describe_scene(
    targets: Targets,
    student_logits: Tensor,
    teacher_logits: Tensor,
    shape_yx: tuple[int, int],
    *,
    cell_m: float,
    hardness: Hardness,
) -> BevScene:
    """The scene on a map that covers the heatmap's range at any resolution.

    Args:
        targets: of the batch, as `data.targets` makes them.
        student_logits: heatmap logits [B, K, Yh, Xh].
        teacher_logits: the same of the teacher, on the same cells and in the same class order.
        shape_yx: rows and columns of the map.
        cell_m: side of the heatmap's cells.
        hardness: "disagreement", the largest difference of the networks' probabilities over the classes, or
            "confidence", the teacher's largest probability.
    """
    footprints = object_footprints(targets, shape_yx, cell_m)
    instance = owners(footprints)
    class_id = targets["label"].gather(1, instance.clamp(min=0).flatten(1)).view_as(instance)
    teacher = torch.sigmoid(teacher_logits.float())
    value = teacher if hardness == "confidence" else (teacher - torch.sigmoid(student_logits.float())).abs()
    near = _resize(targets["heatmap"].amax(dim=1, keepdim=True), shape_yx) > _NEAR_AN_OBJECT
    return BevScene(
        instance=instance,
        class_id=torch.where(instance >= 0, class_id, NO_CLASS),
        clear=(instance < 0) & ~near[:, 0],
        hardness=_resize(value.amax(dim=1, keepdim=True), shape_yx)[:, 0],
        cell_m=cell_m * targets["heatmap"].shape[-2] / shape_yx[0],
    )


def _resize(value: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """The highest value inside each cell of a coarser map; the value of the cell around each cell of a finer one."""
    if value.shape[-2:] == shape_yx:
        return value
    return torch.nn.functional.adaptive_max_pool2d(value, shape_yx)
