"""The training section of a recipe: optimisation, stages, resampling and augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.recipe_section import Fraction, Positive, Section, Weight
from bevkd_deploy.contracts.suggest import did_you_mean

#: Objects of a class that a frame is filled up to, as in BEVFusion's and CenterPoint's nuScenes schedules.
PASTED_UP_TO: dict[str, int] = {
    "car": 2,
    "truck": 3,
    "trailer": 6,
    "bus": 4,
    "construction_vehicle": 7,
    "bicycle": 6,
    "motorcycle": 6,
    "pedestrian": 2,
    "traffic_cone": 2,
    "barrier": 2,
}


def _check_scale(scale: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be [low, high] with 0 < low <= high, got {list(scale)}")


class ImageAugmentationConfig(Section):
    """Another view of each camera image, drawn per camera; camera tables follow it.

    All lengths are relative to the deployed fit of the image, so networks of other input sizes see the same view.
    """

    scale: tuple[float, float] = Field(
        (1.0, 1.0),
        description="zoom, uniform; 1 is the deployed fit. The crop lies anywhere in the zoomed width",
    )
    bottom_crop: tuple[Fraction, Fraction] = Field(
        (0.0, 0.0), description="part of the zoomed image's height cut off at its bottom, uniform"
    )
    flip: bool = Field(False, description="mirror left and right, in half of the draws")
    rotation_rad: Annotated[float, Field(ge=0)] = Field(
        0.0, description="about the middle of the crop, uniform in [-value, value]"
    )

    @model_validator(mode="after")
    def _ranges(self) -> ImageAugmentationConfig:
        _check_scale(self.scale)
        low, high = self.bottom_crop
        if not low <= high < 1:
            raise ValueError(f"bottom_crop must be [low, high] with low <= high < 1, got {[low, high]}")
        return self

    @property
    def is_off(self) -> bool:
        """Whether every draw is the deployed view."""
        return self == ImageAugmentationConfig()


class PasteConfig(Section):
    """Ground-truth paste: objects of other training frames with their LiDAR points. Images stay as they are."""

    up_to: dict[str, Positive] = Field(
        PASTED_UP_TO, description="class: objects that a frame is filled up to; a class left out is not pasted"
    )
    min_points: Positive = Field(5, description="keyframe LiDAR points that an object to paste has at least")
    objects_per_class: Positive = Field(
        2000, description="objects of a class in the database, spread evenly over the training split"
    )
    until_fraction: Fraction = Field(1.0, description="part of the training after which nothing is pasted any more")

    @model_validator(mode="after")
    def _known_classes(self) -> PasteConfig:
        for name in self.up_to:
            if name not in CLASS_NAMES:
                hint = did_you_mean(name, CLASS_NAMES)
                raise ValueError(f"up_to: no class {name!r}.{hint} Classes: {', '.join(CLASS_NAMES)}")
        return self


class AugmentationConfig(Section):
    """Random changes of each training frame; BEV keys first. Boxes, targets, points and camera tables follow."""

    flip_x: bool = Field(False, description="negate x, in half of the draws")
    flip_y: bool = Field(False, description="negate y, in half of the draws")
    rotation_rad: Annotated[float, Field(ge=0)] = Field(0.0, description="about z, uniform in [-value, value]")
    scale: tuple[float, float] = Field((1.0, 1.0), description="of the whole scene, uniform")
    translation_m: tuple[Weight, Weight, Weight] = Field(
        (0.0, 0.0, 0.0), description="standard deviation of a normal shift along x, y, z"
    )
    image: ImageAugmentationConfig | None = None
    paste: PasteConfig | None = None

    @model_validator(mode="after")
    def _ranges(self) -> AugmentationConfig:
        _check_scale(self.scale)
        return self

    @property
    def bev_is_off(self) -> bool:
        """Whether the BEV map is always the deployed one."""
        return self.model_copy(update={"image": None, "paste": None}) == AugmentationConfig()

    @property
    def views_are_off(self) -> bool:
        """Whether every camera image is the deployed one."""
        return self.image is None or self.image.is_off


Schedule = Literal["one_cycle", "cosine"]
Rate = Annotated[float, Field(gt=0)]
_WARMUP = Annotated[float, Field(gt=0, lt=1)]


class StageConfig(Section):
    """One part of a training. A key that is absent here is the training section's."""

    epochs: Positive
    losses: tuple[str, ...] | None = Field(
        None, description="distillation terms that are on, by their key in distill.losses; absent: all; []: none"
    )
    freeze: tuple[str, ...] = Field(
        (), description="globs of module names of the network (img_backbone, pts_*): neither trained nor updated"
    )
    learning_rate: Rate | None = None
    schedule: Schedule | None = None
    warmup_fraction: _WARMUP | None = Field(None, description="of the stage")


class TrainConfig(Section):
    """Optimisation of one model (AdamW)."""

    epochs: Positive
    batch_size: Positive = Field(2, description="frames of one forward pass, over all processes together")
    accumulate: Positive = Field(1, description="forward passes whose mean gradient makes one step")
    learning_rate: Rate = 2e-3
    schedule: Schedule = Field(
        "one_cycle", description="one_cycle also moves AdamW's first beta; cosine: linear warm-up, then to zero"
    )
    warmup_fraction: _WARMUP = 0.2
    weight_decay: Weight = 0.01
    decay_norms: bool = Field(True, description="weight decay also for norms and biases")
    max_grad_norm: Annotated[float, Field(gt=0)] = 10.0
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass, by autocast; weights stay fp32, fp16 comes with a loss scale"
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="evaluate and save a moving average of the weights, 0.999 say; absent: the weights themselves"
    )
    stages: tuple[StageConfig, ...] = Field((), description="parts of the training, one after another; empty: one part")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that prepare frames, per training process")
    cache_sensors: bool = Field(
        False, description="keep points and resized images in memory; raw images where augmentation.image is on"
    )
    evaluate_every: Annotated[int, Field(ge=0)] = Field(0, description="epochs between evaluations; 0: at the end only")
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = Field(0, description="0: at the end of each epoch only")
    repeat: Positive = Field(1, description="passes over the training samples that make one epoch")
    class_balanced: bool = Field(
        False, description="CBGS: a pass draws frames so that each class is drawn for equally often"
    )
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _stages_add_up(self) -> TrainConfig:
        lengths = [stage.epochs for stage in self.stages]
        if lengths and sum(lengths) != self.epochs:
            words = " + ".join(map(str, lengths))
            raise ValueError(f"stages last {words} = {sum(lengths)} epochs, epochs says {self.epochs}: make them equal")
        return self
