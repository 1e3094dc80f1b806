"""The distillation section of a recipe: what the teacher teaches, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from bevkd_deploy.contracts.recipe_section import Fraction, Positive, Section, Weight


class TermWeight(Section):
    """How much a term counts: a number, or `{auto: RATIO}`.

    With `auto` the number is measured once, early in the training: the term's gradient on the student's trunk is
    RATIO times that of the detection loss. Then it stays.
    """

    fixed: Weight | None = None
    auto: Annotated[float, Field(gt=0)] | None = Field(None, description="ratio of gradient norms")

    @model_validator(mode="before")
    @classmethod
    def _number(cls, given: Any) -> Any:
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return {"fixed": given}
        if not isinstance(given, (dict, TermWeight)):
            raise ValueError(f"must be a number or {{auto: RATIO}}, got {given!r}")
        return given

    @model_validator(mode="after")
    def _one_of_both(self) -> TermWeight:
        if (self.fixed is None) == (self.auto is None):
            raise ValueError("a weight is a number or {auto: RATIO}")
        return self

    @model_serializer
    def _short(self) -> Any:
        return self.fixed if self.auto is None else {"auto": self.auto}

    def __str__(self) -> str:
        return f"{self.fixed:g}" if self.auto is None else f"auto {self.auto:g}"


def fixed_weight(value: float) -> TermWeight:
    """A weight that is a number."""
    return TermWeight(fixed=value)


class TermConfig(Section):
    """What every distillation term has."""

    weight: TermWeight


class HeatmapLossConfig(TermConfig):
    """Pivotal-position heatmap KD (SparseKD)."""

    weight: TermWeight = fixed_weight(10.0)
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="divides the logits of both networks")
    beyond_truth: Fraction = Field(
        0.0,
        description="how far the teacher is heard where the truth has no object; 0: not at all, 1: as on objects",
    )


class QualityFocalLossConfig(TermConfig):
    """Heatmap KD by the quality focal loss (CRKD): the teacher's probabilities as soft labels."""

    weight: TermWeight = fixed_weight(20.0)
    beta: Weight = Field(2.0, description="how strongly agreement silences a cell")
    beyond_truth: Fraction = Field(
        0.0,
        description="weight of a cell without an object; at 1 the teacher's false positives count too",
    )


class BoxLossConfig(TermConfig):
    """Box KD: L1 between both networks' regression maps, times the teacher's score; needs one BEV grid."""

    weight: TermWeight = fixed_weight(1.0)
    peak_score: Fraction | None = Field(
        0.25, description="the teacher's peaks of at least this score teach too; null: ground-truth cells alone"
    )


class TapLayoutConfig(Section):
    """What a tapped BEV map covers, where that is not its network's whole range in yx order."""

    x_range_m: tuple[float, float] | None = Field(None, description="absent: the range of the network")
    y_range_m: tuple[float, float] | None = Field(None, description="absent: the range of the network")
    cell_m: Annotated[float, Field(gt=0)] | None = Field(
        None, description="checked against the map; absent: range / size of the map"
    )
    axis_order: Literal["yx", "xy"] | None = Field(
        None, description="xy for maps drawn [B, C, X, Y]; absent: the network's order"
    )

    @model_validator(mode="after")
    def _ranges_ascend(self) -> TapLayoutConfig:
        for name in ("x_range_m", "y_range_m"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] < limits[1]:
                raise ValueError(f"{name} must be (min, max), got {list(limits)}")
        return self


class TapLossConfig(TermConfig):
    """A loss between student taps and teacher taps, by dotted module path."""

    student: str = Field("pts_neck", description="a tap (see Distillation), such as pts_neck or pts_backbone.blocks.*")
    teacher: str = Field("pts_neck", description="a tap of the teacher")
    count: Positive | None = Field(
        None,
        description="modules that each of the two patterns matches; they are paired in order, their losses summed",
    )
    space: Literal["bev", "image"] = Field(
        "bev", description="image: both taps are maps of the camera branch, of one size, compared pixel by pixel"
    )
    student_layout: TapLayoutConfig | None = None
    teacher_layout: TapLayoutConfig | None = None

    @model_validator(mode="after")
    def _image_maps_have_no_layout(self) -> TapLossConfig:
        if self.space == "image" and (self.student_layout or self.teacher_layout):
            raise ValueError("'space: image' compares pixels: student_layout and teacher_layout have no meaning there")
        return self


class FeatureLossConfig(TapLossConfig):
    """Channel-standardised feature imitation (PKD) with foreground weighting."""

    weight: TermWeight = fixed_weight(10.0)
    projector: Literal["conv", "mlp", "linear"] = Field(
        "conv", description="student side: 1x1 convolution and norm, two of them with ReLU, or a plain linear map"
    )
    background: Weight = Field(
        0.1,
        description="weight of a cell without an object; with box_area, of all such cells relative to all objects",
    )
    weighting: Literal["gaussian", "box_area"] = Field(
        "gaussian", description="objects by their Gaussian, or every object alike by one over its outline's area"
    )


class AttentionLossConfig(TapLossConfig):
    """Attention transfer: L2-normalised energy maps."""

    weight: TermWeight = fixed_weight(1.0)
    background: Weight | None = Field(
        None, description="compare on objects alone but for this weight of other cells; absent: all cells alike"
    )


class ContrastLossConfig(TapLossConfig):
    """Dense BEV contrast (CRD over cells, with a queue of teacher keys)."""

    weight: TermWeight = fixed_weight(0.5)
    space: Literal["bev"] = Field("bev", description="cells are told apart by what stands in them")
    projector: Literal["linear", "mlp"] = Field("linear", description="embedding of the student's cells")
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


class PairLossConfig(TapLossConfig):
    """A classic loss between two taps, with the settings of RepDistiller; the weight has no default."""

    loss: Literal[
        "hint", "attention", "similarity", "variational", "neuron_selectivity",
        "correlation", "relational", "probabilistic", "info_nce", "nt_xent",
    ] = Field(description="the last five compare one vector a frame: the mean over cells")  # fmt: skip


class DistillLosses(Section):
    """The terms added to the detection loss. An absent term is off."""

    heatmap: HeatmapLossConfig | None = None
    quality_focal: QualityFocalLossConfig | None = None
    boxes: BoxLossConfig | None = None
    feature: FeatureLossConfig | None = None
    attention: AttentionLossConfig | None = None
    contrast: ContrastLossConfig | None = None
    pairs: tuple[PairLossConfig, ...] = ()

    def enabled(self) -> dict[str, TermConfig]:
        """The terms with a weight other than 0, by name; one of `pairs` bears its loss (`pair_hint`, `pair_hint_2`)."""
        terms: dict[str, TermConfig] = {}
        for name in type(self).model_fields:
            term = getattr(self, name)
            if isinstance(term, TermConfig):
                terms[name] = term
        kinds = [pair.loss for pair in self.pairs]
        for place, pair in enumerate(self.pairs):
            number = kinds[: place + 1].count(pair.loss)
            terms[f"pair_{pair.loss}" + (f"_{number}" if number > 1 else "")] = pair
        return {name: term for name, term in terms.items() if term.weight.fixed != 0}


class LabelsConfig(Section):
    """The teacher's boxes as further labels, where the ground truth has no such object within 2 m."""

    min_score: Fraction = Field(0.25, description="score that a box has at least")
    match: Literal["class", "any"] = Field(
        "class", description="a box is no label within 2 m of an object of its class, or of any object"
    )
    peaks: Literal["full", "score"] = Field(
        "full", description="full: an object's heatmap peak; score: a peak of this height, which is not punished only"
    )


class InheritConfig(Section):
    """The student starts from the teacher's weights: of each layer the channels with the largest l1 norm (SparseKD)."""

    parts: tuple[Literal["camera", "lidar", "bev", "head"], ...] = Field(
        ("camera", "lidar", "bev", "head"), min_length=1, description="parts of the network that are inherited"
    )


class CalibrationConfig(Section):
    """When the weights given as `auto` are measured. Such a term is off before that."""

    first_step: Positive = 20
    steps: Positive = Field(20, description="steps whose gradient norms are averaged")


class DistillConfig(Section):
    """How the teacher teaches."""

    losses: DistillLosses = DistillLosses()
    labels: LabelsConfig | None = None
    inherit: InheritConfig | None = None
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="linear ramp of the added terms")
    stop_fraction: Fraction = Field(1.0, description="part of the training after which the added terms are off")
    calibration: CalibrationConfig = CalibrationConfig()
    log_gradients_every: Annotated[int, Field(ge=0)] = Field(
        200, description="steps between measurements of every term's gradient norm; 0: at the start only"
    )

    @model_validator(mode="after")
    def _teaches_something(self) -> DistillConfig:
        if not self.losses.enabled() and self.labels is None and self.inherit is None:
            known = ", ".join(DistillLosses.model_fields)
            raise ValueError(
                f"no term is on, so nothing would be distilled. Add to losses one of {known}, or train the student "
                "alone: bevkd train RECIPE --no-distill"
            )
        if self.stop_fraction <= self.warmup_fraction:
            raise ValueError(
                f"stop_fraction {self.stop_fraction:g} must be greater than warmup_fraction {self.warmup_fraction:g}"
            )
        return self

    def feature_terms(self) -> list[str]:
        """The enabled losses that read features of the teacher, and so need its forward pass, by name."""
        return [name for name, term in self.losses.enabled().items() if isinstance(term, TapLossConfig)]

    def teacher_maps(self, maps: Iterable[str]) -> tuple[str, ...]:
        """Those of the teacher's head maps that the terms and the labels read."""
        heatmap_alone = {"heatmap", "quality_focal", *self.feature_terms()}
        reads_boxes = self.labels is not None or not self.losses.enabled().keys() <= heatmap_alone
        return tuple(maps) if reads_boxes else ("heatmap",)
