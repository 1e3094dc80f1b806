"""The distillation section of a recipe: what the teacher teaches, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

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
        is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
        return {"fixed": given} if is_number else given

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


class TapLossConfig(TermConfig):
    """A loss between one student tap and one teacher tap, by dotted module path."""

    student: str = "pts_neck"
    teacher: str = "pts_neck"


class FeatureLossConfig(TapLossConfig):
    """Channel-standardised feature imitation (PKD) with foreground weighting."""

    weight: TermWeight = fixed_weight(2.0)
    background: Weight = Field(0.1, description="weight of a cell without an object")


class AttentionLossConfig(TapLossConfig):
    """Attention transfer: L2-normalised energy maps."""

    weight: TermWeight = fixed_weight(1.0)


class ContrastLossConfig(TapLossConfig):
    """Dense BEV contrast (CRD over cells, with a queue of teacher keys)."""

    weight: TermWeight = fixed_weight(0.2)
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

    def enabled(self) -> dict[str, TermConfig]:
        """The terms that are on, by name."""
        terms = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: term for name, term in terms.items() if term is not None}


class CalibrationConfig(Section):
    """When the weights given as `auto` are measured. Such a term is off before that."""

    first_step: Positive = 20
    steps: Positive = Field(20, description="steps whose gradient norms are averaged")


class DistillConfig(Section):
    """How the teacher teaches."""

    losses: DistillLosses
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="linear ramp of the added terms")
    stop_fraction: Fraction = Field(1.0, description="part of the training after which the added terms are off")
    calibration: CalibrationConfig = CalibrationConfig()
    log_gradients_every: Annotated[int, Field(ge=0)] = Field(
        200, description="steps between measurements of every term's gradient norm; 0: at the start only"
    )

    @model_validator(mode="after")
    def _teaches_something(self) -> DistillConfig:
        terms = self.losses.enabled()
        if not any(term.weight.fixed != 0 for term in terms.values()):
            known = ", ".join(DistillLosses.model_fields)
            raise ValueError(
                f"losses: no term is on, so nothing would be distilled. Add one of {known}, or train the student "
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
        """Those of the teacher's head maps that the enabled losses read.

        Heatmap KD reads the heatmap alone; what knows boxes reads all of them.
        """
        boxes = self.losses.enabled().keys() - {"heatmap", *self.feature_terms()}
        return tuple(maps) if boxes else ("heatmap",)
