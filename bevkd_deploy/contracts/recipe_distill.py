"""The distillation section of a recipe: what the teacher teaches, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from bevkd_deploy.contracts.recipe_section import Positive, Section, Weight


class HeatmapLossConfig(Section):
    """Pivotal-position heatmap KD (SparseKD)."""

    weight: Weight = 10.0


class TapLossConfig(Section):
    """A loss between one student tap and one teacher tap, by dotted module path."""

    weight: Weight
    student: str = "pts_neck"
    teacher: str = "pts_neck"


class FeatureLossConfig(TapLossConfig):
    """Channel-standardised feature imitation (PKD) with foreground weighting."""

    weight: Weight = 2.0
    background: Weight = Field(0.1, description="weight of a cell without an object")


class AttentionLossConfig(TapLossConfig):
    """Attention transfer: L2-normalised energy maps."""

    weight: Weight = 1.0


class ContrastLossConfig(TapLossConfig):
    """Dense BEV contrast (CRD over cells, with a queue of teacher keys)."""

    weight: Weight = 0.2
    temperature: Annotated[float, Field(gt=0)] = 0.07
    embedding_channels: Positive = 128
    cells_per_sample: Positive = 256
    queue_size: Annotated[int, Field(ge=0)] = 16384


class DistillLosses(Section):
    """The terms added to the detection loss. An absent term is off."""

    heatmap: HeatmapLossConfig | None = None
    feature: FeatureLossConfig | None = None
    attention: AttentionLossConfig | None = None
    contrast: ContrastLossConfig | None = None


class DistillConfig(Section):
    """How the teacher teaches."""

    losses: DistillLosses
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="linear ramp of the added terms")

    def feature_terms(self) -> list[str]:
        """The enabled losses that read features of the teacher, and so need its forward pass, by name."""
        return [name for name, term in self.losses if getattr(term, "teacher", None) is not None]

    def teacher_maps(self, maps: Iterable[str]) -> tuple[str, ...]:
        """Those of the teacher's head maps that the enabled losses read.

        Heatmap KD reads the heatmap alone; what knows boxes reads all of them.
        """
        boxes = {name for name, term in self.losses if term is not None} - {"heatmap", *self.feature_terms()}
        return tuple(maps) if boxes else ("heatmap",)
