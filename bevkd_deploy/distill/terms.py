"""The terms of a distillation: one module each, built from the recipe, all called with what one step saw."""

from __future__ import annotations

from dataclasses import dataclass

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

#: Channels of every tapped map: {"student": {tap: channels}, "teacher": {tap: channels}}.
Channels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class StepView:
    """What both networks gave for one batch, everything of the teacher on the student's grid and in its classes.

    Attributes:
        student_maps: head output of the student, [B, ., Y, X] by name.
        teacher_maps: the same of the teacher, "heatmap" included.
        student_taps: tapped features by path.
        teacher_taps: tapped features by path, aligned.
        targets: ground truth of the batch (see `data.targets`).
        cell_m: cell size of the student's BEV map.
    """

    student_maps: dict[str, Tensor]
    teacher_maps: dict[str, Tensor]
    student_taps: dict[str, Tensor]
    teacher_taps: dict[str, Tensor]
    targets: dict[str, Tensor]
    cell_m: float

    @property
    def heatmaps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of student and teacher, and the Gaussians of the ground truth; [B, K, Y, X] each."""
        return self.student_maps["heatmap"], self.teacher_maps["heatmap"], self.targets["heatmap"]

    def pair(self, taps: TapLossConfig) -> tuple[Tensor, Tensor]:
        """The two maps of a pair of taps, student first."""
        return self.student_taps[taps.student], self.teacher_taps[taps.teacher]


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

    def __init__(self, config: FeatureLossConfig, widths: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.loss = FeatureImitationLoss(*widths, config.background, config.weighting)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        student, teacher = view.pair(self.config)
        foreground = view.targets["heatmap"]
        if self.config.weighting == "box_area":
            shape_yx = (student.shape[-2], student.shape[-1])
            foreground = inverse_area(object_footprints(view.targets, shape_yx, view.cell_m))
        value: Tensor = self.loss(student, teacher, foreground)
        return value


class AttentionTerm(nn.Module):
    """Attention transfer between two maps."""

    def __init__(self, config: AttentionLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        if self.config.background is None:
            return attention_transfer_loss(*view.pair(self.config))
        return attention_transfer_loss(
            *view.pair(self.config), view.targets["heatmap"], background=self.config.background
        )


class ContrastTerm(nn.Module):
    """Dense contrast between two maps."""

    def __init__(self, config: ContrastLossConfig, widths: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.loss = DenseContrastLoss(*widths, config)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        student, teacher = view.pair(self.config)
        scene = describe_scene(
            view.targets,
            view.student_maps["heatmap"],
            view.teacher_maps["heatmap"],
            (student.shape[-2], student.shape[-1]),
            cell_m=view.cell_m,
            hardness=self.config.hard_background,
        )
        value: Tensor = self.loss(student, teacher, scene)
        return value


class PairTerm(nn.Module):
    """A classic loss between two maps."""

    def __init__(self, config: PairLossConfig, widths: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.loss = build_pair_loss(config.loss, *widths)

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        value: Tensor = self.loss(*view.pair(self.config))
        return value


def build_terms(config: DistillConfig, channels: Channels) -> nn.ModuleDict:
    """The enabled terms by the names that they have in the recipe.

    Args:
        config: the recipe's section.
        channels: of both networks' taps.
    """
    return nn.ModuleDict({name: _term(term, channels) for name, term in config.losses.enabled().items()})


def tap_pairs(config: DistillConfig) -> dict[str, TapLossConfig]:
    """The enabled terms that compare a pair of taps, by name."""
    return {name: term for name, term in config.losses.enabled().items() if isinstance(term, TapLossConfig)}


def _term(config: TermConfig, channels: Channels) -> nn.Module:
    match config:
        case HeatmapLossConfig():
            return HeatmapTerm(config)
        case QualityFocalLossConfig():
            return QualityFocalTerm(config)
        case BoxLossConfig():
            return BoxTerm(config)
        case FeatureLossConfig():
            return FeatureTerm(config, _widths(config, channels))
        case AttentionLossConfig():
            return AttentionTerm(config)
        case ContrastLossConfig():
            return ContrastTerm(config, _widths(config, channels))
        case PairLossConfig():
            return PairTerm(config, _widths(config, channels))
    raise TypeError(f"no term for {type(config).__name__}")


def _widths(pair: TapLossConfig, channels: Channels) -> tuple[int, int]:
    return channels["student"][pair.student], channels["teacher"][pair.teacher]
