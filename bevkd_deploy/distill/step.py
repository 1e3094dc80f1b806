"""One training step as a module: batch in, named losses out. With a teacher it distils, without one it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_distill import DistillConfig
from bevkd_deploy.distill.alignment import align, class_order
from bevkd_deploy.distill.losses.boxes import require_same_grid
from bevkd_deploy.distill.processes import mean_over_processes
from bevkd_deploy.distill.progress import Progress, Stage
from bevkd_deploy.distill.tap_report import TapReport
from bevkd_deploy.distill.taps import Taps
from bevkd_deploy.distill.teacher_labels import TeacherLabels
from bevkd_deploy.distill.terms import StepView, build_terms
from bevkd_deploy.distill.weighting import TermWeights, gradient_norms
from bevkd_deploy.geometry.grid import BevLayout
from bevkd_deploy.models.detection_loss import detection_losses, object_counts
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.network import BOX_OUTPUTS
from bevkd_deploy.teachers.frozen import Teacher

Batch = dict[str, Any]

#: Heatmap logit where the teacher's range ends: as good as no confidence, so nothing is taught there.
_UNSEEN_LOGIT = -20.0


@dataclass(frozen=True)
class StepLosses:
    """What one step gives.

    Attributes:
        weighted: scalars by name; their sum is minimised.
        raw: unweighted distillation terms by name, detached.
        weights: their multipliers at this step, ramp included.
        gradient_norms: of the unweighted terms and of "detection" on the student's trunk, in the steps where they are
            measured.
    """

    weighted: dict[str, Tensor]
    raw: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    gradient_norms: dict[str, float] = field(default_factory=dict)


class TrainingStep(nn.Module):
    """Detection loss of one network; `name` is its entry in the batch's inputs."""

    def __init__(self, detector: FusionDetector, name: str) -> None:
        super().__init__()
        self.detector = detector
        self.name = name

    def begin_stage(self, stage: Stage) -> None:
        """No term of it can be switched."""

    def forward(self, batch: Batch, progress: Progress) -> StepLosses:
        """The detection terms."""
        return StepLosses(detection_losses(self.detector(**batch["inputs"][self.name]), batch["targets"]))


class DistillationStep(nn.Module):
    """Detection loss of the student plus the recipe's distillation terms.

    Projectors, the contrast queue and measured weights are submodules, so they are optimised, checkpointed and wrapped
    with the student; the teacher is kept out of the module tree.
    """

    teacher: Teacher

    def __init__(
        self,
        student: FusionDetector,
        teacher: Teacher,
        config: DistillConfig,
        taps: TapReport,
        min_radius_cells: int = 2,
    ) -> None:
        """Build the terms.

        Args:
            student: the network that learns.
            teacher: the frozen one, live or cached.
            config: losses and their weights.
            taps: what the recipe's taps give in these two networks, from `report_taps`.
            min_radius_cells: smallest Gaussian of a label that the teacher adds, as in the targets.
        """
        super().__init__()
        self.detector = student
        # Past nn.Module's bookkeeping, so that the teacher is in no state dict, optimizer or DDP bucket.
        object.__setattr__(self, "teacher", teacher)
        self.student_layout = BevLayout.of(student.spec)
        self.teacher_layout = BevLayout.of(teacher.spec)
        self.classes_match = class_order(teacher.spec.classes, student.spec.classes)
        self.taps = taps
        self.terms = build_terms(config, taps)
        self.weights = TermWeights(config)
        self.labels: TeacherLabels | None = None
        if config.labels:
            self.labels = TeacherLabels(config.labels, student.spec, teacher.spec.classes, min_radius_cells)
        if config.losses.boxes:
            require_same_grid(self.student_layout.grid, self.teacher_layout.grid)

    def begin_stage(self, stage: Stage) -> None:
        """Train only the parameters of terms that are on."""
        for name, term in self.terms.items():
            term.requires_grad_(stage.has_term(name))

    def forward(self, batch: Batch, progress: Progress) -> StepLosses:
        """Detection and distillation terms.

        Args:
            batch: inputs of "student" and "teacher", targets.
            progress: the added terms ramp up over the beginning of the training; its stage says which are on.

        Raises:
            DeadTermError: a term does not reach the student.
        """
        on = [name for name in self.terms if progress.stage.has_term(name)]
        if not on and self.labels is None:  # a student that only inherits, or a stage without a teacher
            return StepLosses(detection_losses(self.detector(**batch["inputs"]["student"]), batch["targets"]))
        view, truth = self._view(batch, on)
        detection = detection_losses(view.student_maps, truth)
        raw = {name: self.terms[name](view) for name in on}
        norms: dict[str, float] = {}
        if self.training and self.weights.wants_norms(on):
            norms = gradient_norms({"detection": torch.stack(list(detection.values())).sum(), **raw}, self._trunk())
            self.weights.observe(norms, norms["detection"])
        ramp = self.weights.ramp(progress.fraction)
        multipliers = {name: ramp * self.weights.weight(name) for name in raw}
        if self.training:
            self.weights.advance(on)
        added = {f"{name}_kd_loss": multipliers[name] * value for name, value in raw.items()}
        detached = {name: value.detach() for name, value in raw.items()}
        return StepLosses({**detection, **added}, detached, multipliers, norms)

    def _view(self, batch: Batch, on: list[str]) -> tuple[StepView, dict[str, Tensor]]:
        """Both networks' outputs, and what the detection loss learns: the truth and the teacher's labels."""
        targets = batch["targets"]
        self.teacher.to(targets["heatmap"].device)  # moved by nobody else: it is in no module tree
        with Taps(self.teacher.model, self.taps.taps("teacher", on), detach=True, role="teacher") as teacher_taps:
            teacher_maps = self.teacher(batch["inputs"].get("teacher"), batch["position"])
        with Taps(self.detector, self.taps.taps("student", on), detach=False, role="student") as student_taps:
            student_maps = self.detector(**batch["inputs"]["student"])
        view = StepView(
            student_maps=student_maps,
            teacher_maps={
                name: self._aligned_head(name, found) for name, found in teacher_maps.items() if name not in BOX_OUTPUTS
            },
            student_taps=student_taps.take(),
            teacher_taps=teacher_taps.take(),
            targets=targets,
            layout=self.student_layout,
        )
        if self.labels is None:
            return view, targets
        truth = self.labels(targets, *self.teacher.boxes(teacher_maps))
        if "divisors" in targets:  # those of the whole step count the truth alone
            added = object_counts(truth) - object_counts(targets)
            truth = {**truth, "divisors": targets["divisors"] + mean_over_processes(added)}
        return view, truth

    def _aligned_head(self, name: str, teacher_map: Tensor) -> Tensor:
        if name != "heatmap":
            return align(teacher_map, self.teacher_layout, self.student_layout)
        # A coarser cell of the student shows the highest peak inside it.
        heatmap = align(teacher_map, self.teacher_layout, self.student_layout, _UNSEEN_LOGIT, pool="max")
        return heatmap[:, self.classes_match]

    def _trunk(self) -> list[nn.Parameter]:
        """The weights whose gradients are compared: the student without its head, which feature terms never reach."""
        head = {id(parameter) for parameter in self.detector.bbox_head.parameters()}
        learning = [parameter for parameter in self.detector.parameters() if parameter.requires_grad]
        return [parameter for parameter in learning if id(parameter) not in head] or learning
