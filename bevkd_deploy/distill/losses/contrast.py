"""Dense contrastive distillation over BEV cells, with a queue of teacher keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.distill.losses.feature import standardize
from bevkd_deploy.distill.projectors import ProjectorKind, build_projector

_FOREGROUND = 0.3  # a cell whose Gaussian exceeds this belongs to an object
_NEAR_M = 2.0
_BACKGROUND_CLASS = -1
_EMPTY_SLOT = -2


class DenseContrastLoss(nn.Module):
    """Each sampled student cell must pick the teacher's same cell among many others.

    Positives: the same cell of the same frame. Negatives: other sampled cells of the batch and a first-in-first-out
    queue of earlier teacher keys, leaving out cells of the same class and cells of the same frame within 2 m. The
    teacher is frozen and its embedding is a fixed orthogonal projection of standardised features, so queued keys
    never go stale.

    Source: CRD (arXiv 1910.10699), its InfoNCE form over cells; queue after MoCo (arXiv 1911.05722).
    """

    keys: Tensor
    key_class: Tensor
    cursor: Tensor
    teacher_projection: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        embedding_channels: int,
        temperature: float,
        cells_per_sample: int,
        queue_size: int,
        cell_m: float,
        projector: ProjectorKind = "linear",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.cells_per_sample = cells_per_sample
        self.cell_m = cell_m
        size = min(embedding_channels, teacher_channels)
        self.embed = build_projector(projector, student_channels, size)
        projection = torch.empty(teacher_channels, size)
        nn.init.orthogonal_(projection)
        self.register_buffer("teacher_projection", projection)
        self.register_buffer("keys", torch.zeros(queue_size, size))
        self.register_buffer("key_class", torch.full((queue_size,), _EMPTY_SLOT, dtype=torch.long))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(self, student: Tensor, teacher: Tensor, target_heatmap: Tensor) -> Tensor:
        """Maps [B, Cs, Y, X], [B, Ct, Y, X] and Gaussians [B, K, Y, X] -> scalar, finite for frames without objects."""
        # exp(1 / 0.07) overflows half precision, so the whole term is FP32 under any autocast.
        with torch.autocast(student.device.type, enabled=False):
            return self._contrast(student.float(), teacher.float(), target_heatmap)

    def _contrast(self, student: Tensor, teacher: Tensor, target_heatmap: Tensor) -> Tensor:
        frame, cell, cell_class = self._sample_cells(target_heatmap)
        teacher = standardize(teacher)
        queries = self.embed(student.flatten(2).transpose(1, 2)[frame, cell])  # [M, D]
        queries = nn.functional.normalize(queries, dim=1)
        keys = teacher.flatten(2).transpose(1, 2)[frame, cell] @ self.teacher_projection
        keys = nn.functional.normalize(keys, dim=1).detach()

        # A copy of the queue: it changes below, before the backward pass reads what it was here.
        logits = torch.cat([queries @ keys.T, queries @ self.keys.clone().T], dim=1) / self.temperature
        excluded = torch.cat(
            [
                self._too_alike(frame, cell, cell_class, target_heatmap.shape[-1]),
                (self.key_class == cell_class[:, None]) | (self.key_class == _EMPTY_SLOT),
            ],
            dim=1,
        )
        loss = nn.functional.cross_entropy(
            logits.masked_fill(excluded, float("-inf")), torch.arange(len(queries), device=logits.device)
        )
        if self.training:
            self._enqueue(keys, cell_class)
        return loss

    def _sample_cells(self, target_heatmap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frame number, flat cell and class of the sampled cells; three quarters foreground where there is enough."""
        peak, peak_class = target_heatmap.flatten(2).max(dim=1)  # [B, YX]
        frames, cells = [], []
        for index in range(len(peak)):
            foreground = torch.nonzero(peak[index] > _FOREGROUND).squeeze(1)
            background = torch.nonzero(peak[index] <= _FOREGROUND).squeeze(1)
            foreground = _draw(foreground, self.cells_per_sample * 3 // 4)
            background = _draw(background, self.cells_per_sample - len(foreground))
            chosen = torch.cat([foreground, background])
            cells.append(chosen)
            frames.append(torch.full_like(chosen, index))
        frame, cell = torch.cat(frames), torch.cat(cells)
        is_object = peak[frame, cell] > _FOREGROUND
        return frame, cell, torch.where(is_object, peak_class[frame, cell], _BACKGROUND_CLASS)

    def _too_alike(self, frame: Tensor, cell: Tensor, cell_class: Tensor, columns: int) -> Tensor:
        """Pairs [M, M] that are no negatives; the diagonal (the positive) stays in."""
        row, column = cell // columns, cell % columns
        distance_m = self.cell_m * torch.hypot(
            (row[:, None] - row).float(), (column[:, None] - column).float()
        )  # fmt: skip
        near = (frame[:, None] == frame) & (distance_m < _NEAR_M)
        alike = near | (cell_class[:, None] == cell_class)
        alike.fill_diagonal_(False)
        return alike

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, key_class: Tensor) -> None:
        size = len(self.keys)
        if not size:
            return
        keys, key_class = keys[:size], key_class[:size]
        slots = (self.cursor + torch.arange(len(keys), device=keys.device)) % size
        self.keys[slots] = keys
        self.key_class[slots] = key_class
        self.cursor.copy_((self.cursor + len(keys)) % size)


def _draw(candidates: Tensor, count: int) -> Tensor:
    """At most `count` of the candidates, at random: on every device by the CPU's generator, which checkpoints keep."""
    if len(candidates) <= count:
        return candidates
    return candidates[torch.randperm(len(candidates))[:count].to(candidates.device)]
