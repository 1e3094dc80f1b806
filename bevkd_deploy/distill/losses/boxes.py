"""Box distillation: the teacher's regressed maps where it is sure of an object."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.distill.processes import divisor
from bevkd_deploy.geometry.grid import BevGrid
from bevkd_deploy.models.center_head import BOX_MAPS
from bevkd_deploy.models.detection_loss import CODE_WEIGHTS

_PEAK_WINDOW = 3


def box_kd_loss(
    student_maps: dict[str, Tensor],
    teacher_maps: dict[str, Tensor],
    teacher_logits: Tensor,
    targets: dict[str, Tensor],
    *,
    peak_score: float | None,
) -> Tensor:
    """L1 between both networks' regression maps at the cells of objects, times the teacher's score there.

    Cells are those of the ground truth and, with `peak_score`, the teacher's own peaks of at least this score. The sum
    is divided by the number of cells, so an unsure teacher teaches little; velocities count as in the detection loss,
    and not at all in a ground-truth cell whose velocity is unknown.

    Args:
        student_maps: maps of BOX_MAPS, [B, C, Y, X] each.
        teacher_maps: the same of the teacher, on the same grid: offsets are in cells (`require_same_grid`).
        teacher_logits: [B, K, Y, X] heatmap logits of the classes that the student knows.
        targets: cell int64 [B, O] and mask [B, O, 10] of the ground truth.
        peak_score: None for ground-truth cells alone.

    Returns:
        Scalar; 0 when both networks agree, and 0 with a zero gradient when there is no cell.

    Source: SparseKD (arXiv 2205.15156), regression KD at ground-truth cells; scores as weights as in CRKD
    (arXiv 2403.19104).
    """
    student = torch.cat([student_maps[name] for name in BOX_MAPS], dim=1).float()  # [B, 10, Y, X]
    teacher = torch.cat([teacher_maps[name] for name in BOX_MAPS], dim=1).float().detach()
    logits = teacher_logits.float().detach()
    score = torch.sigmoid(logits).amax(dim=1, keepdim=True)  # [B, 1, Y, X]
    chosen = _cells_with(targets["cell"], targets["mask"][..., 0], score)
    known = 1 - _cells_with(targets["cell"], targets["mask"][..., 0] - targets["mask"][..., 8], score)
    if peak_score is not None:
        # On logits: sigmoid saturates, and two saturated neighbours would both look like peaks.
        peak = torch.nn.functional.max_pool2d(logits, _PEAK_WINDOW, 1, _PEAK_WINDOW // 2) == logits
        chosen = torch.maximum(chosen, (peak & (torch.sigmoid(logits) >= peak_score)).any(dim=1, keepdim=True).float())
    velocity = student.new_tensor([float(name == "vel") for name, size in BOX_MAPS.items() for _ in range(size)])
    code = student.new_tensor(CODE_WEIGHTS).view(1, -1, 1, 1)
    code = code * torch.where(velocity.view(1, -1, 1, 1) > 0, known, 1.0)
    return ((student - teacher).abs() * code * score * chosen).sum() / divisor(chosen.sum())


def require_same_grid(student: BevGrid, teacher: BevGrid) -> None:
    """Refuse to compare regression maps of different grids.

    Offsets are in cells and a network regresses well only where its own peaks are, so resampled maps teach nonsense.

    Raises:
        UsageError: range or cell size differ.
    """
    if student != teacher:
        raise UsageError(
            f"distill.losses.boxes compares regression maps cell by cell, so both networks need the same BEV grid: the "
            f"teacher has {teacher}, the student {student}. Take out distill.losses.boxes; distill.labels "
            "takes over the teacher's boxes across grids"
        )


def _cells_with(cell: Tensor, value: Tensor, like: Tensor) -> Tensor:
    """Map [B, 1, Y, X] with the highest value [B, O] of each cell [B, O], 0 elsewhere; padding has value 0."""
    flat = torch.zeros_like(like).flatten(1)
    return flat.scatter_reduce(1, cell, value.to(flat.dtype), "amax").view_as(like)
