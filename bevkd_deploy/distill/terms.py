"""The terms of a distillation: one module each, built from the recipe, all called with what one step saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_distill import (
    AttentionLossConfig,
    BoxLossConfig,
    ContrastLossConfig,
    DistillConfig,
    FeatureLossConfig,
    HeatmapLossConfig,
    PairLossConfig,
    QualityFocalLossConfig,
    TapLossConfig,
    TermConfig,
)
from bevkd_deploy.distill.losses.attention import attention_transfer_loss
from bevkd_deploy.distill.losses.boxes import box_kd_loss
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss
from bevkd_deploy.distill.losses.footprints import inverse_area, object_footprints
from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss
from bevkd_deploy.distill.losses.quality_focal import quality_focal_kd_loss
from bevkd_deploy.distill.losses.scene import describe_scene
from bevkd_deploy.distill.pair_losses import build_pair_loss
from bevkd_deploy.distill.tap_report import TapPair, TapReport
from bevkd_deploy.geometry.grid import BevLayout


@dataclass(frozen=True)
class StepView:
    """What both networks gave for one batch.

    Attributes:
        student_maps: head output of the student, [B, ., Y, X] by name.
        teacher_maps: the same of the teacher, "heatmap" included, on the student's grid and in its classes.
        student_taps: tapped features by path, as they are.
        teacher_taps: tapped features by path, as they are.
        targets: ground truth of the batch (see `data.targets`).
        layout: what the student's head maps cover.
    """

    student_maps: dict[str, Tensor]
    teacher_maps: dict[str, Tensor]
    student_taps: dict[str, Tensor]
    teacher_taps: dict[str, Tensor]
    targets: dict[str, Tensor]
    layout: BevLayout

    @property
    def heatmaps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of student and teacher, and the Gaussians of the ground truth; [B, K, Y, X] each."""
        return self.student_maps["heatmap"], self.teacher_maps["heatmap"], self.targets["heatmap"]

    def pair(self, taps: TapPair) -> tuple[Tensor, Tensor]:
        """The two maps of a pair of taps on the cells of the student's, student first."""
        return taps.aligned(self.student_taps[taps.student.path], self.teacher_taps[taps.teacher.path])

    def foreground(self, taps: TapPair, student_map: Tensor) -> Tensor:
        """The Gaussians of the ground truth on the cells of a student's map."""
        return taps.foreground(self.targets["heatmap"], self.layout, student_map)


class HeatmapTerm(nn.Module):
    """Pivotal-position heatmap KD between the heads."""

    def __init__(self, config: HeatmapLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        settings = self.config
        return heatmap_kd_loss(*view.heatmaps, temperature=settings.temperature, beyond_truth=settings.beyond_truth)


class QualityFocalTerm(nn.Module):
    """Heatmap KD by the quality focal loss."""

    def __init__(self, config: QualityFocalLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        return quality_focal_kd_loss(*view.heatmaps, beta=self.config.beta, beyond_truth=self.config.beyond_truth)


class BoxTerm(nn.Module):
    """Box KD between the heads."""

    def __init__(self, config: BoxLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        teacher = view.teacher_maps
        return box_kd_loss(
            view.student_maps, teacher, teacher["heatmap"], view.targets, peak_score=self.config.peak_score
        )


class FeatureTerm(nn.Module):
    """Imitation of a teacher map, weighted towards objects."""

    def __init__(self, config: FeatureLossConfig, taps: TapPair) -> None:
        super().__init__()
        self.config, self.taps = config, taps
        widths = taps.student.channels, taps.teacher.channels
        self.loss = FeatureImitationLoss(*widths, config.background, config.weighting, config.projector)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        student, teacher = view.pair(self.taps)
        if self.config.weighting == "box_area":
            shape_yx = (student.shape[-2], student.shape[-1])
            foreground = inverse_area(object_footprints(view.targets, shape_yx, view.layout.grid.cell_m))
        else:
            foreground = view.foreground(self.taps, student)
        value: Tensor = self.loss(student, teacher, foreground)
        return value


class AttentionTerm(nn.Module):
    """Attention transfer between two maps."""

    def __init__(self, config: AttentionLossConfig, taps: TapPair) -> None:
        super().__init__()
        self.config, self.taps = config, taps

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        student, teacher = view.pair(self.taps)
        if self.config.background is None:
            return attention_transfer_loss(student, teacher)
        foreground = view.foreground(self.taps, student)
        return attention_transfer_loss(student, teacher, foreground, background=self.config.background)


class ContrastTerm(nn.Module):
    """Dense contrast between two maps."""

    def __init__(self, config: ContrastLossConfig, taps: TapPair) -> None:
        super().__init__()
        self.config, self.taps = config, taps
        self.loss = DenseContrastLoss(taps.student.channels, taps.teacher.channels, config)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        student, teacher = view.pair(self.taps)
        scene = describe_scene(
            view.targets,
            view.student_maps["heatmap"],
            view.teacher_maps["heatmap"],
            (student.shape[-2], student.shape[-1]),
            cell_m=view.layout.grid.cell_m,
            hardness=self.config.hard_background,
        )
        value: Tensor = self.loss(student, teacher, scene)
        return value


class PairTerm(nn.Module):
    """A classic loss between two maps."""

    def __init__(self, config: PairLossConfig, taps: TapPair) -> None:
        super().__init__()
        self.taps = taps
        self.loss = build_pair_loss(config.loss, taps.student.channels, taps.teacher.channels)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        value: Tensor = self.loss(*view.pair(self.taps))
        return value


class SumTerm(nn.Module):
    """The sum over the pairs of taps that the patterns of one section give."""

    def __init__(self, terms: list[nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        return torch.stack([term(view) for term in self.terms]).sum()


def build_terms(config: DistillConfig, taps: TapReport) -> nn.ModuleDict:
    """The enabled terms by the names that they have in the recipe.

    Args:
        config: the recipe's section.
        taps: what the recipe's taps give in the two networks.
    """
    terms: dict[str, nn.Module] = {}
    for name, term in config.losses.enabled().items():
        if isinstance(term, TapLossConfig):
            each = [_tapped_term(term, pair) for pair in taps.pairs[name]]
            terms[name] = each[0] if len(each) == 1 else SumTerm(each)
        else:
            terms[name] = _head_term(term)
    return nn.ModuleDict(terms)


def _head_term(config: TermConfig) -> nn.Module:
    match config:
        case HeatmapLossConfig():
            return HeatmapTerm(config)
        case QualityFocalLossConfig():
            return QualityFocalTerm(config)
        case BoxLossConfig():
            return BoxTerm(config)
    raise TypeError(f"no term for {type(config).__name__}")


def _tapped_term(config: TapLossConfig, taps: TapPair) -> nn.Module:
    match config:
        case FeatureLossConfig():
            return FeatureTerm(config, taps)
        case AttentionLossConfig():
            return AttentionTerm(config, taps)
        case ContrastLossConfig():
            return ContrastTerm(config, taps)
        case PairLossConfig():
            return PairTerm(config, taps)
    raise TypeError(f"no term for {type(config).__name__}")
