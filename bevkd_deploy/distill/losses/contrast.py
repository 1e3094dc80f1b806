"""Dense contrastive distillation over BEV cells, with a queue of teacher keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_distill import ContrastLossConfig
from bevkd_deploy.distill.gathering import gather_rows, own_rows
from bevkd_deploy.distill.losses.cell_sampling import SampledCells, sample_cells
from bevkd_deploy.distill.losses.feature import cell_rows, standardize
from bevkd_deploy.distill.losses.scene import NO_CLASS, BevScene
from bevkd_deploy.distill.processes import divisor
from bevkd_deploy.distill.projectors import build_projector

_NEAR_M = 2.0
_BARRED = -1e30  # exp of it is 0
_EMPTY_SLOT = -2  # a class that no cell has


class DenseContrastLoss(nn.Module):
    """Each sampled student cell must pick the teacher's same cell among many others.

    Cells: objects, spread over instances, and the background where it is hard. Positives: the same cell of the same
    frame. Negatives: the other sampled cells of the batch, of all processes, and a first-in-first-out queue of earlier
    teacher keys; left out are cells of the same class (background is a class of its own), of the same object, and of
    the same frame within 2 m. With `same_class_negatives` other objects of the class are negatives too.

    A cell that has no negatives, as every cell of a batch without objects and with an empty queue, teaches nothing: it
    is left out of the mean, and the loss of such a batch is 0 with gradients of 0 on all parameters, so that
    data-parallel training goes on. All processes keep the same queue.

    The teacher is frozen and its embedding is a fixed orthogonal projection of standardised features, so queued keys
    never go stale.

    Source: CRD (arXiv 1910.10699), its InfoNCE form over cells; queue after MoCo (arXiv 1911.05722).
    """

    keys: Tensor
    key_class: Tensor
    cursor: Tensor
    teacher_projection: Tensor

    def __init__(self, student_channels: int, teacher_channels: int, config: ContrastLossConfig) -> None:
        super().__init__()
        self.config = config
        size = min(config.embedding_channels, teacher_channels)
        self.embed = build_projector(config.projector, student_channels, size)
        projection = torch.empty(teacher_channels, size)
        nn.init.orthogonal_(projection)
        self.register_buffer("teacher_projection", projection)
        self.register_buffer("keys", torch.zeros(config.queue_size, size))
        self.register_buffer("key_class", torch.full((config.queue_size,), _EMPTY_SLOT, dtype=torch.long))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(self, student: Tensor, teacher: Tensor, scene: BevScene) -> Tensor:
        """Maps [B, Cs, Y, X] and [B, Ct, Y, X] and what their cells show -> scalar.

        Raises:
            ValueError: the maps and the scene have different cells.
        """
        if not student.shape[2:] == teacher.shape[2:] == scene.instance.shape[1:]:
            raise ValueError(
                f"maps and scene must cover the same cells, got {list(student.shape)}, {list(teacher.shape)} and "
                f"{list(scene.instance.shape)}"
            )
        # exp(1 / 0.07) overflows half precision, so the whole term is FP32 under any autocast.
        with torch.autocast(student.device.type, enabled=False):
            return self._contrast(student, teacher.detach(), scene)

    def _contrast(self, student: Tensor, teacher: Tensor, scene: BevScene) -> Tensor:
        cells = sample_cells(scene, self.config.cells_per_sample)
        rows = cells.frame * scene.instance[0].numel() + cells.cell
        queries = self.embed(cell_rows(student).index_select(0, rows).float())  # [M, D]
        queries = nn.functional.normalize(queries, dim=1)
        keys = standardize(cell_rows(teacher)).index_select(0, rows) @ self.teacher_projection
        keys = nn.functional.normalize(keys, dim=1)

        # Keys and classes of every process in one tensor, exact in FP32, so that they are gathered once.
        mine = torch.cat([keys, cells.class_id[:, None].float()], dim=1)
        own, everywhere = own_rows(mine), gather_rows(mine)
        queued = torch.cat([self.keys, self.key_class[:, None].float()], dim=1)
        far = torch.cat([everywhere[: own.start], everywhere[own.stop :], queued])  # of other frames, [N, D + 1]
        far_class = far[:, -1].long()
        excluded = torch.cat(
            [self._too_alike(cells, scene), self._same_class(cells.class_id, far_class) | (far_class == _EMPTY_SLOT)],
            dim=1,
        )
        # Added, not filled in: to fill in where a mask is true takes as long as the product itself.
        barred = excluded.float() * _BARRED
        logits = torch.addmm(barred, queries / self.config.temperature, torch.cat([keys, far[:, :-1]]).T)  # [M, M + N]
        if self.training:
            self._enqueue(everywhere[:, :-1], everywhere[:, -1].long())
        has_negatives = (~excluded).sum(dim=1) > 1  # more than its positive
        cells_that_teach = divisor(has_negatives.sum().float())  # of every process, also where this one has no cell
        if not len(queries):
            return queries.sum()
        own_key = torch.arange(len(queries), device=queries.device)
        missed = nn.functional.cross_entropy(logits, own_key, reduction="none")
        return (missed * has_negatives).sum() / cells_that_teach

    def _too_alike(self, cells: SampledCells, scene: BevScene) -> Tensor:
        """Pairs [M, M] of this process's cells that are no negatives; the diagonal (the positive) stays in."""
        columns = scene.instance.shape[-1]
        row, column = cells.cell // columns, cells.cell % columns
        distance_m = scene.cell_m * torch.hypot(
            (row[:, None] - row).float(), (column[:, None] - column).float()
        )  # fmt: skip
        same_object = (cells.instance[:, None] == cells.instance) & (cells.instance >= 0)
        same_frame = cells.frame[:, None] == cells.frame
        alike = same_frame & (same_object | (distance_m < _NEAR_M)) | self._same_class(cells.class_id, cells.class_id)
        return alike.fill_diagonal_(False)

    def _same_class(self, query_class: Tensor, key_class: Tensor) -> Tensor:
        """Pairs [M, N] that are no negatives because of their classes."""
        same = query_class[:, None] == key_class
        if self.config.same_class_negatives:
            return same & (key_class == NO_CLASS)  # two cells of empty ground stay alike
        return same

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
