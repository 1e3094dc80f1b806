"""One training step as a module: batch in, named losses out. With a teacher it distils, without one it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_distill import ContrastLossConfig, DistillConfig, FeatureLossConfig, TapLossConfig
from bevkd_deploy.distill.alignment import BevLayout, align, class_order
from bevkd_deploy.distill.losses.attention import attention_transfer_loss
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss
from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss
from bevkd_deploy.distill.tap_report import TapPair, TapReport
from bevkd_deploy.distill.taps import Taps
from bevkd_deploy.geometry.grid import BevGrid
from bevkd_deploy.models.detection_loss import detection_losses
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.teachers.frozen import FrozenTeacher

Batch = dict[str, Any]

#: Heatmap logit where the teacher's range ends: as good as no confidence, so nothing is taught there.
_UNSEEN_LOGIT = -20.0


class TrainingStep(nn.Module):
    """Detection loss of one network; `name` is its entry in the batch's inputs."""

    def __init__(self, detector: FusionDetector, name: str) -> None:
        super().__init__()
        self.detector = detector
        self.name = name

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised."""
        return detection_losses(self.detector(**batch["inputs"][self.name]), batch["targets"])


class DistillationStep(nn.Module):
    """Detection loss of the student plus the recipe's distillation terms.

    Projectors and the contrast queue are submodules, so they are optimised, checkpointed and wrapped with the
    student; the teacher is kept out of the module tree.
    """

    teacher: FrozenTeacher

    def __init__(
        self,
        student: FusionDetector,
        teacher: FrozenTeacher,
        config: DistillConfig,
        taps: TapReport,
    ) -> None:
        """Build the terms.

        Args:
            student: the network that learns.
            teacher: the frozen one.
            config: losses and their weights.
            taps: what the recipe's taps give in these two networks, from `report_taps`.
        """
        super().__init__()
        self.detector = student
        # Past nn.Module's bookkeeping, so that the teacher is in no state dict, optimizer or DDP bucket.
        object.__setattr__(self, "teacher", teacher)
        self.config = config
        self.student_layout = BevLayout(BevGrid.bev(student.spec))
        self.teacher_layout = BevLayout(BevGrid.bev(teacher.spec))
        self.classes_match = class_order(teacher.spec.classes, student.spec.classes)
        self.taps = taps
        sections = {name: getattr(config.losses, name) for name in taps.pairs}
        self.terms = nn.ModuleDict(
            {name: nn.ModuleList(_term(sections[name], pair) for pair in pairs) for name, pairs in taps.pairs.items()}
        )

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Weighted losses by name.

        Args:
            batch: inputs of "student" and "teacher", targets.
            progress: share of the training that is done, 0..1; the added terms ramp up over its beginning.
        """
        self.teacher.to(batch["targets"]["heatmap"].device)  # moved by nobody else: it is in no module tree
        with Taps(self.teacher.model, self.taps.taps("teacher"), detach=True) as teacher_taps:
            teacher_maps = self.teacher(batch["inputs"]["teacher"])
        with Taps(self.detector, self.taps.taps("student"), detach=False) as student_taps:
            maps = self.detector(**batch["inputs"]["student"])
        losses = detection_losses(maps, batch["targets"])
        weights = self.config.losses
        ramp = min(1.0, progress / self.config.warmup_fraction) if self.config.warmup_fraction else 1.0
        gaussians = batch["targets"]["heatmap"]
        if weights.heatmap:
            logits = align(teacher_maps["heatmap"], self.teacher_layout, self.student_layout, _UNSEEN_LOGIT, pool="max")
            logits = logits[:, self.classes_match]
            kd = heatmap_kd_loss(maps["heatmap"], logits, gaussians)
            losses["heatmap_kd_loss"] = ramp * weights.heatmap.weight * kd
        student_features, teacher_features = student_taps.take(), teacher_taps.take()
        for name, pairs in self.taps.pairs.items():
            values = []
            for index, pair in enumerate(pairs):
                term = self.terms.get_submodule(f"{name}.{index}")
                both = pair.aligned(student_features[pair.student.path], teacher_features[pair.teacher.path])
                values.append(term(*both, pair.targets(gaussians, self.student_layout)))
            losses[f"{name}_loss"] = ramp * getattr(weights, name).weight * torch.stack(values).sum()
        return losses


class _Attention(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, target_heatmap: Tensor) -> Tensor:
        return attention_transfer_loss(student, teacher)


def _term(config: TapLossConfig, pair: TapPair) -> nn.Module:
    """The loss of one pair of taps."""
    sizes = pair.student.channels, pair.teacher.channels
    if isinstance(config, FeatureLossConfig):
        return FeatureImitationLoss(*sizes, background=config.background, projector=config.projector)
    if isinstance(config, ContrastLossConfig):
        assert pair.student.layout is not None  # the recipe schema: contrast is in BEV space
        return DenseContrastLoss(
            *sizes,
            embedding_channels=config.embedding_channels,
            temperature=config.temperature,
            cells_per_sample=config.cells_per_sample,
            queue_size=config.queue_size,
            cell_m=pair.student.layout.grid.cell_m,
            projector=config.projector,
        )
    return _Attention()
