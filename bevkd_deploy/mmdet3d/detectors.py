"""The student and its distillation as mmdet3d detectors: networks and losses of a recipe under mmengine's Runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.data.dataset import batched, input_key, preprocessor_for
from bevkd_deploy.distill.progress import Progress
from bevkd_deploy.distill.step import DistillationStep, StepLosses, TrainingStep
from bevkd_deploy.distill.tap_report import TappedNetwork, TapReport, report_taps, tap_losses
from bevkd_deploy.mmdet3d.boxes import label_map, to_lidar_boxes
from bevkd_deploy.mmdet3d.recipes import load_for_runner, load_teacher
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.accuracy import MIN_SCORE
from bevkd_deploy.pipelines.distill import distillation_step, start_student
from bevkd_deploy.pipelines.synthetic_frame import synthetic_sensors
from bevkd_deploy.pipelines.teacher_cache import frozen_teacher
from bevkd_deploy.teachers.frozen import FrozenTeacher

#: Where the student's weights stand in the state dict of both detectors.
DETECTOR_PREFIX = "step.detector."

Inputs = Mapping[str, dict[str, Tensor]]


@MODELS.register_module()
class BevkdStudent(Base3DDetector):
    """The student of a recipe, trained by its detection loss.

    Attributes:
        loaded: the recipe.
        step: `distill.step.TrainingStep` with the network as `step.detector`.
    """

    def __init__(
        self,
        recipe: str,
        overrides: Sequence[str] = (),
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        """Build the network.

        Args:
            recipe: file or name of a bevkd recipe.
            overrides: KEY=VALUE of the recipe.
            data_preprocessor: by default BevkdDataPreprocessor.
            init_cfg: as of any mmengine module.
        """
        super().__init__(data_preprocessor or {"type": "BevkdDataPreprocessor"}, init_cfg)
        self.loaded = load_for_runner(recipe, overrides)
        self.step = self._build_step()
        self.step.begin_stage(Progress.at(0.0).stage)

    @property
    def detector(self) -> FusionDetector:
        """The network that is trained and deployed."""
        return self.step.detector

    def _build_step(self) -> TrainingStep | DistillationStep:
        recipe = self.loaded.recipe
        return TrainingStep(build_detector(recipe.student.model, recipe.student_spec(), recipe.seed), "student")

    def loss(self, inputs: Inputs, data_samples: list[Det3DDataSample]) -> dict[str, Tensor]:
        """Weighted terms, whose keys end in `_loss` and which mmengine sums; what else is logged beside them.

        Args:
            inputs: "student" and "targets" (and "teacher") of BevkdInputs, batched.
            data_samples: of the frames.

        Raises:
            UsageError: the pipeline has made no targets, or no inputs for the teacher.
        """
        if "targets" not in inputs:
            raise UsageError("there is nothing to learn: put LoadAnnotations3D before BevkdInputs in the pipeline")
        batch = {
            "inputs": self._network_inputs(inputs),
            "targets": inputs["targets"],
            "position": [sample.metainfo["sample_idx"] for sample in data_samples],
        }
        return logged(self.step(batch, runner_progress()), inputs["targets"]["heatmap"].device)

    def predict(self, inputs: Inputs, data_samples: list[Det3DDataSample]) -> list[Det3DDataSample]:
        """Boxes of the frames as `pred_instances_3d`, labels in the order of the dataset's classes.

        Classes that the dataset does not have and scores that our own evaluation leaves out are left out.
        """
        boxes, scores, labels = self.detector.decode(self._forward(inputs))
        found = []
        for row, sample in enumerate(data_samples):
            to_dataset = torch.from_numpy(label_map(self.detector.spec.classes, sample.metainfo["classes"]))
            mapped = to_dataset.to(labels.device)[labels[row].long()]
            keep = (scores[row] >= MIN_SCORE) & (mapped >= 0)
            found.append(
                InstanceData(
                    bboxes_3d=to_lidar_boxes(boxes[row, keep]), scores_3d=scores[row, keep], labels_3d=mapped[keep]
                )
            )
        samples: list[Det3DDataSample] = self.add_pred_to_datasample(data_samples, found)
        return samples

    def extract_feat(self, batch_inputs: Inputs) -> dict[str, Tensor]:
        """Head maps: the network is one graph, and hands nothing from part to part."""
        maps: dict[str, Tensor] = self.detector(**batch_inputs["student"])
        return maps

    def _forward(self, inputs: Inputs, data_samples: list[Det3DDataSample] | None = None) -> dict[str, Tensor]:
        """Head maps [B, C, Y, X]: mode "tensor"."""
        return self.extract_feat(inputs)

    def _network_inputs(self, inputs: Inputs) -> dict[str, dict[str, Tensor]]:
        return {"student": inputs["student"]}


@MODELS.register_module()
class BevkdDistillation(BevkdStudent):
    """The student of a recipe, trained by its detection loss and the recipe's distillation terms.

    The teacher is frozen and in no module tree: not in the checkpoint, the optimizer or a data-parallel wrapper. A
    checkpoint of this detector is one of BevkdStudent with the projectors beside it.

    Attributes:
        step: `distill.step.DistillationStep`.
    """

    step: DistillationStep

    def _build_step(self) -> DistillationStep:
        recipe = self.loaded.recipe
        teacher = load_teacher(self.loaded)
        student, _ = start_student(recipe, teacher)
        frozen = frozen_teacher(recipe, teacher)
        self.shares_inputs = input_key(frozen.spec) == input_key(student.spec)
        return distillation_step(recipe, student, frozen, self._taps(student, frozen))

    def _taps(self, student: FusionDetector, teacher: FrozenTeacher) -> TapReport:
        """What the recipe's taps give, found on a made-up frame: no data is there when a model is built."""
        recipe = self.loaded.recipe
        if not tap_losses(recipe.distill):
            return TapReport({}, None)
        images, points, calibration = synthetic_sensors(student.spec, recipe.seed)
        student_inputs, teacher_inputs = (
            _first_batch(preprocessor_for(spec)([images[camera] for camera in spec.cameras], points, calibration))
            for spec in (student.spec, teacher.spec)
        )
        return report_taps(
            TappedNetwork.student(student, student_inputs),
            TappedNetwork.teacher(teacher, teacher_inputs),
            recipe.distill,
        )

    def _network_inputs(self, inputs: Inputs) -> dict[str, dict[str, Tensor]]:
        if self.shares_inputs:
            return {"student": inputs["student"], "teacher": inputs["student"]}
        if "teacher" not in inputs:
            raise UsageError("the pipeline makes no inputs for the teacher; set BevkdInputs(teacher=True) in it")
        return {"student": inputs["student"], "teacher": inputs["teacher"]}


def logged(losses: StepLosses, device: torch.device) -> dict[str, Tensor]:
    """The terms to sum, and under names without "loss" what mmengine logs and does not sum."""
    shown = {f"raw_{name}": value for name, value in losses.raw.items()}
    numbers = {f"weight_{name}": value for name, value in losses.weights.items()}
    numbers |= {f"gradient_norm_{name}": value for name, value in losses.gradient_norms.items()}
    return {**losses.weighted, **shown, **{name: torch.tensor(value, device=device) for name, value in numbers.items()}}


def runner_progress() -> Progress:
    """How far the Runner is, which the ramp of the terms follows; outside of a Runner the ramp is over."""
    hub = MessageHub.get_current_instance()
    total = hub.get_info("max_iters")
    if total is None:
        return Progress.at(1.0)
    return replace(Progress.at(0.0), step=int(hub.get_info("iter")), total_steps=int(total))


def _first_batch(feed: Mapping[str, Any]) -> dict[str, Tensor]:
    return batched([{name: torch.from_numpy(array) for name, array in feed.items()}])
