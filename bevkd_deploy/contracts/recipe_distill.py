"""The distillation section of a recipe: what the teacher teaches, and how strongly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bevkd_deploy.contracts.recipe_section import Positive, Section, Weight


class HeatmapLossConfig(Section):
    """Pivotal-position heatmap KD (SparseKD)."""

    weight: Weight = 10.0


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


class TapLossConfig(Section):
    """A loss between student taps and teacher taps, by dotted module path."""

    weight: Weight
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

    weight: Weight = 2.0
    projector: Literal["conv", "mlp", "linear"] = Field(
        "conv", description="student side: 1x1 convolution and norm, two of them with ReLU, or a plain linear map"
    )
    background: Weight = Field(0.1, description="weight of a cell without an object")


class AttentionLossConfig(TapLossConfig):
    """Attention transfer: L2-normalised energy maps."""

    weight: Weight = 1.0


class ContrastLossConfig(TapLossConfig):
    """Dense BEV contrast (CRD over cells, with a queue of teacher keys)."""

    weight: Weight = 0.2
    space: Literal["bev"] = Field("bev", description="cells are told apart by what stands in them")
    projector: Literal["linear", "mlp"] = Field("linear", description="embedding of the student's cells")
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
