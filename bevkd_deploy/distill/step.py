"""One training step as a module: batch in, named losses out. With a teacher it distils, without one it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe_distill import DistillConfig, TapLossConfig
from bevkd_deploy.distill.alignment import BevLayout, align
from bevkd_deploy.distill.losses.attention import attention_transfer_loss
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss
from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss
from bevkd_deploy.distill.progress import Progress, Stage
from bevkd_deploy.distill.taps import Taps
from bevkd_deploy.geometry.grid import BevGrid
from bevkd_deploy.models.detection_loss import detection_losses
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.teachers.frozen import FrozenTeacher

Batch = dict[str, Any]
PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Heatmap logit where the teacher's range ends: as good as no confidence, so nothing is taught there.
_UNSEEN_LOGIT = -20.0


class TrainingStep(nn.Module):
    """Detection loss of one network; `name` is its entry in the batch's inputs."""

    def __init__(self, detector: FusionDetector, name: str) -> None:
        super().__init__()
        self.detector = detector
        self.name = name

    def begin_stage(self, stage: Stage) -> None:
        """No term of it can be switched."""

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
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
        channels: dict[str, dict[str, int]],
    ) -> None:
        """Build the terms.

        Args:
            student: the network that learns.
            teacher: the frozen one.
            config: losses and their weights.
            channels: {"student": {tap: channels}, "teacher": {tap: channels}}, from `tap_shapes`.
        """
        super().__init__()
        self.detector = student
        # Past nn.Module's bookkeeping, so that the teacher is in no state dict, optimizer or DDP bucket.
        object.__setattr__(self, "teacher", teacher)
        self.config = config
        self.student_layout = BevLayout(BevGrid.bev(student.spec))
        self.teacher_layout = BevLayout(BevGrid.bev(teacher.spec))
        self.classes_match = class_order(teacher.spec.classes, student.spec.classes)
        self.pairs = tap_pairs(config)
        cell_m = self.student_layout.grid.cell_m
        terms: dict[str, nn.Module] = {}
        losses = config.losses
        if losses.feature:
            sizes = channels["student"][losses.feature.student], channels["teacher"][losses.feature.teacher]
            terms["feature"] = FeatureImitationLoss(*sizes, background=losses.feature.background)
        if losses.contrast:
            sizes = channels["student"][losses.contrast.student], channels["teacher"][losses.contrast.teacher]
            terms["contrast"] = DenseContrastLoss(
                *sizes,
                embedding_channels=losses.contrast.embedding_channels,
                temperature=losses.contrast.temperature,
                cells_per_sample=losses.contrast.cells_per_sample,
                queue_size=losses.contrast.queue_size,
                cell_m=cell_m,
            )
        self.terms = nn.ModuleDict(terms)

    def begin_stage(self, stage: Stage) -> None:
        """Train only the parameters of terms that are on."""
        for name, term in self.terms.items():
            term.requires_grad_(stage.has_term(name))

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Weighted losses by name.

        Args:
            batch: inputs of "student" and "teacher", targets.
            progress: the added terms ramp up over the beginning of the training; the stage says which are on.
        """
        self.teacher.to(batch["targets"]["heatmap"].device)  # moved by nobody else: it is in no module tree
        with Taps(self.teacher.model, [pair.teacher for pair in self.pairs.values()], detach=True) as teacher_taps:
            teacher_maps = self.teacher(batch["inputs"]["teacher"])
        with Taps(self.detector, [pair.student for pair in self.pairs.values()], detach=False) as student_taps:
            maps = self.detector(**batch["inputs"]["student"])
        losses = detection_losses(maps, batch["targets"])
        weights = self.config.losses
        ramp = min(1.0, progress.fraction / self.config.warmup_fraction) if self.config.warmup_fraction else 1.0
        gaussians = batch["targets"]["heatmap"]
        if weights.heatmap and progress.stage.has_term("heatmap"):
            logits = self._aligned(teacher_maps["heatmap"], _UNSEEN_LOGIT)[:, self.classes_match]
            kd = heatmap_kd_loss(maps["heatmap"], logits, gaussians)
            losses["heatmap_kd_loss"] = ramp * weights.heatmap.weight * kd
        student_features, teacher_features = student_taps.take(), teacher_taps.take()
        for name, pair in self.pairs.items():
            if not progress.stage.has_term(name):
                continue
            teacher_map = self._aligned(teacher_features[pair.teacher])
            value = self._pair_loss(name)(student_features[pair.student], teacher_map, gaussians)
            losses[f"{name}_loss"] = ramp * pair.weight * value
        return losses

    def _aligned(self, teacher_map: Tensor, outside: float = 0.0) -> Tensor:
        return align(teacher_map, self.teacher_layout, self.student_layout, outside)

    def _pair_loss(self, name: str) -> PairLoss:
        if name == "attention":
            return lambda student, teacher, _: attention_transfer_loss(student, teacher)
        return self.terms[name]


def tap_pairs(config: DistillConfig) -> dict[str, TapLossConfig]:
    """The enabled losses that compare a pair of taps, by name."""
    named = {name: getattr(config.losses, name) for name in ("feature", "attention", "contrast")}
    return {name: pair for name, pair in named.items() if pair is not None}


def class_order(teacher: tuple[str, ...], student: tuple[str, ...]) -> list[int]:
    """For each student class, its channel in the teacher's heatmap, by name."""
    missing = [name for name in student if name not in teacher]
    if missing:
        raise DataError(f"the teacher does not know classes {missing}; it knows {list(teacher)}")
    return [teacher.index(name) for name in student]


@torch.no_grad()
def tap_shapes(model: nn.Module, inputs: dict[str, Tensor], paths: list[str]) -> dict[str, tuple[int, ...]]:
    """Shape of what each tap captures in one forward pass, without training anything."""
    training = model.training
    model.eval()
    with Taps(model, paths, detach=True) as taps:
        model(**inputs)
    model.train(training)
    return {path: tuple(tensor.shape) for path, tensor in taps.take().items()}
