"""The distillation section of a recipe: what the teacher teaches, and how strongly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bevkd_deploy.contracts.recipe_section import Fraction, Positive, Section, Weight


class HeatmapLossConfig(Section):
    """Pivotal-position heatmap KD (SparseKD)."""

    weight: Weight = 10.0
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="divides the logits of both networks")
    beyond_truth: Fraction = Field(
        0.0,
        description="how far the teacher is heard where the truth has no object; 0: not at all, 1: as on objects",
    )


class QualityFocalLossConfig(Section):
    """Heatmap KD by the quality focal loss (CRKD): the teacher's probabilities as soft labels."""

    weight: Weight = 1.0
    beta: Weight = Field(2.0, description="how strongly agreement silences a cell")
    beyond_truth: Fraction = Field(
        0.0,
        description="weight of a cell without an object; at 1 the teacher's false positives count too",
    )


class BoxLossConfig(Section):
    """Box KD: L1 between both networks' regression maps, times the teacher's score; needs one BEV grid."""

    weight: Weight = 0.2
    peak_score: Fraction | None = Field(
        0.25, description="the teacher's peaks of at least this score teach too; null: ground-truth cells alone"
    )


class TapLossConfig(Section):
    """A loss between one student tap and one teacher tap, by dotted module path."""

    weight: Weight
    student: str = "pts_neck"
    teacher: str = "pts_neck"


class FeatureLossConfig(TapLossConfig):
    """Channel-standardised feature imitation (PKD) with foreground weighting."""

    weight: Weight = 2.0
    background: Weight = Field(
        0.1,
        description="weight of a cell without an object; with box_area, of all such cells relative to all objects",
    )
    weighting: Literal["gaussian", "box_area"] = Field(
        "gaussian", description="objects by their Gaussian, or every object alike by one over its outline's area"
    )


class AttentionLossConfig(TapLossConfig):
    """Attention transfer: L2-normalised energy maps."""

    weight: Weight = 1.0
    background: Weight | None = Field(
        None, description="compare on objects alone but for this weight of other cells; absent: all cells alike"
    )


class ContrastLossConfig(TapLossConfig):
    """Dense BEV contrast (CRD over cells, with a queue of teacher keys)."""

    weight: Weight = 0.2
    temperature: Annotated[float, Field(gt=0)] = 0.07
    embedding_channels: Positive = 128
    cells_per_sample: Positive = Field(
        256, description="at most three quarters on objects, eight an object; a quarter of hard background"
    )
    hard_background: Literal["disagreement", "confidence"] = Field(
        "disagreement", description="which background: where the heatmaps differ most, or where the teacher is surest"
    )
    same_class_negatives: bool = Field(False, description="other objects of a cell's class are negatives too")
    queue_size: Annotated[int, Field(ge=0)] = 16384


class DistillLosses(Section):
    """The terms added to the detection loss. An absent term is off."""

    heatmap: HeatmapLossConfig | None = None
    quality_focal: QualityFocalLossConfig | None = None
    boxes: BoxLossConfig | None = None
    feature: FeatureLossConfig | None = None
    attention: AttentionLossConfig | None = None
    contrast: ContrastLossConfig | None = None


class LabelsConfig(Section):
    """The teacher's boxes as further labels, where the ground truth has no object of their class within 2 m."""

    min_score: Fraction = Field(0.25, description="score that a box has at least")
    peaks: Literal["full", "score"] = Field(
        "full", description="full: an object's heatmap peak; score: a peak of this height, which is not punished only"
    )


class InheritConfig(Section):
    """The student starts from the teacher's weights: of each layer the channels with the largest l1 norm (SparseKD)."""

    parts: tuple[Literal["camera", "lidar", "bev", "head"], ...] = Field(
        ("camera", "lidar", "bev", "head"), min_length=1, description="parts of the network that are inherited"
    )


class DistillConfig(Section):
    """How the teacher teaches."""

    losses: DistillLosses
    labels: LabelsConfig | None = None
    inherit: InheritConfig | None = None
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="linear ramp of the added terms")
