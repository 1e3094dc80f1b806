"""The terms of a distillation: one module each, built from the recipe, all called with what one step saw."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_distill import DistillConfig, DistillLosses, TapLossConfig
from bevkd_deploy.distill.losses.attention import attention_transfer_loss
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss
from bevkd_deploy.distill.losses.heatmap import heatmap_kd_loss

#: Channels of every tapped map: {"student": {tap: channels}, "teacher": {tap: channels}}.
Channels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class StepView:
    """What both networks gave for one batch, everything of the teacher on the student's grid and in its classes.

    Attributes:
        student_maps: head output of the student, [B, ., Y, X] by name.
        teacher_heatmap: logits [B, K, Y, X].
        student_taps: tapped features by path.
        teacher_taps: tapped features by path, aligned.
        targets: ground truth of the batch (see `data.targets`).
    """

    student_maps: dict[str, Tensor]
    teacher_heatmap: Tensor
    student_taps: dict[str, Tensor]
    teacher_taps: dict[str, Tensor]
    targets: dict[str, Tensor]


class HeatmapTerm(nn.Module):
    """Heatmap KD between the heads."""

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        return heatmap_kd_loss(view.student_maps["heatmap"], view.teacher_heatmap, view.targets["heatmap"])


class PairTerm(nn.Module):
    """A loss between a student tap and a teacher tap."""

    def __init__(self, pair: TapLossConfig) -> None:
        super().__init__()
        self.pair = pair

    def taps(self, view: StepView) -> tuple[Tensor, Tensor]:
        """The two maps, student first."""
        return view.student_taps[self.pair.student], view.teacher_taps[self.pair.teacher]


class AttentionTerm(PairTerm):
    """Attention transfer between two maps."""

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        return attention_transfer_loss(*self.taps(view))


class WeightedPairTerm(PairTerm):
    """A loss between two maps that looks at where the objects are."""

    def __init__(self, pair: TapLossConfig, loss: nn.Module) -> None:
        super().__init__(pair)
        self.loss = loss

    def forward(self, view: StepView) -> Tensor:
        """Unweighted loss."""
        value: Tensor = self.loss(*self.taps(view), view.targets["heatmap"])
        return value


def build_terms(config: DistillConfig, channels: Channels, cell_m: float) -> nn.ModuleDict:
    """The enabled terms by the names that they have in the recipe.

    Args:
        config: the recipe's section.
        channels: of both networks' taps.
        cell_m: cell size of the student's BEV map.
    """
    losses = config.losses
    terms: dict[str, nn.Module] = {}
    if losses.heatmap:
        terms["heatmap"] = HeatmapTerm()
    if losses.feature:
        loss = FeatureImitationLoss(*_widths(losses.feature, channels), background=losses.feature.background)
        terms["feature"] = WeightedPairTerm(losses.feature, loss)
    if losses.attention:
        terms["attention"] = AttentionTerm(losses.attention)
    if losses.contrast:
        terms["contrast"] = WeightedPairTerm(losses.contrast, _contrast(losses, channels, cell_m))
    return nn.ModuleDict(terms)


def tap_pairs(config: DistillConfig) -> dict[str, TapLossConfig]:
    """The enabled terms that compare a pair of taps, by name."""
    return {name: term for name, term in config.losses.enabled().items() if isinstance(term, TapLossConfig)}


def _widths(pair: TapLossConfig, channels: Channels) -> tuple[int, int]:
    return channels["student"][pair.student], channels["teacher"][pair.teacher]


def _contrast(losses: DistillLosses, channels: Channels, cell_m: float) -> DenseContrastLoss:
    settings = losses.contrast
    assert settings is not None
    return DenseContrastLoss(
        *_widths(settings, channels),
        embedding_channels=settings.embedding_channels,
        temperature=settings.temperature,
        cells_per_sample=settings.cells_per_sample,
        queue_size=settings.queue_size,
        cell_m=cell_m,
    )
