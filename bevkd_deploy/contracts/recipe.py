"""The recipe schema: one YAML file names data, teacher, student, distillation, export, benchmark and gates.

Plain values only. `recipe_loader` reads YAML into these models and reports every problem at once; `Recipe`
derives nothing but `GraphSpec`s, so each number stands in exactly one place.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import DistillConfig
from bevkd_deploy.contracts.recipe_section import Fraction, Positive, Section
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.contracts.suggest import did_you_mean
from bevkd_deploy.contracts.target import known_target

RECIPE_SCHEMA = "bevkd.recipe/1"

Precision = Literal["fp32", "fp16"]
BackendReference = Annotated[
    str, Field(pattern=r"^(engine|(teacher|student-torch|onnxruntime|tensorrt|tensorrt_rtx)(-[a-z0-9]+)?)$")
]


class SyntheticConfig(Section):
    """The synthetic world, written on first use into `data.root` in the nuScenes layout."""

    profile: str = Field("quickstart", description="image size, LiDAR resolution and scene length")
    difficulty: Literal["easy", "normal", "hard"] = Field(
        "normal", description="occlusion, density, range and noise of the world"
    )
    train_scenes: Positive = 12
    val_scenes: Positive = 4
    seed: int = 0


class DataConfig(Section):
    """Where samples come from."""

    source: Literal["synthetic", "nuscenes", "mmdet3d_infos"]
    root: str = Field(description="dataset folder; relative to the working directory; $VARIABLES are expanded")
    version: str = Field("v1.0-trainval", description="nuScenes table folder (sources synthetic, nuscenes)")
    train_split: str = "train"
    val_split: str = "val"
    train_infos: str | None = Field(None, description="mmdet3d info file (.pkl), relative to root")
    val_infos: str | None = Field(None, description="mmdet3d info file (.pkl), relative to root")
    cameras: tuple[str, ...] = Field(CAMERA_NAMES, min_length=1, description="channels to use, in this order")
    sweeps: Annotated[int, Field(ge=0)] = Field(0, description="earlier LiDAR turns added to each keyframe")
    on_error: Literal["fail", "drop_sensor"] = Field(
        "fail",
        description="a missing or broken sensor file stops the run, or the frame goes without that sensor and the run "
        "reports it",
    )
    sensors: Literal["fusion", "camera", "lidar"] = Field(
        "fusion", description="which sensors feed the network; the others are missing in every frame"
    )
    synthetic: SyntheticConfig | None = None

    @model_validator(mode="after")
    def _sections_fit_source(self) -> DataConfig:
        if self.source == "synthetic" and self.synthetic is None:
            raise ValueError("source 'synthetic' needs a 'synthetic' section (profile, train_scenes, val_scenes, seed)")
        if self.source == "mmdet3d_infos" and not (self.train_infos and self.val_infos):
            raise ValueError("source 'mmdet3d_infos' needs 'train_infos' and 'val_infos' (.pkl files under root)")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be unique, got {list(self.cameras)}")
        return self


class CameraConfig(Section):
    """Camera branch: ResNet, FPN, depth distribution."""

    backbone: Literal["resnet10", "resnet18", "resnet34"] = "resnet18"
    base_channels: Positive = Field(64, description="channels after the stem; 64 is the standard ResNet")
    image_size_px: tuple[Positive, Positive] = Field(description="(height, width) of the network input")
    feature_stride: Literal[4, 8, 16] = 8
    neck_channels: Positive = 64
    bev_channels: Positive = Field(64, description="context channels lifted into the BEV map")
    depth_m: tuple[float, float] = Field((1.0, 60.0), description="(first, last) depth of the bins")
    depth_bins: Positive = 59
    pretrained: str | None = Field(None, description="torchvision ResNet state dict (.pth or .safetensors)")

    @model_validator(mode="after")
    def _sizes_divide(self) -> CameraConfig:
        if any(side % 32 for side in self.image_size_px):
            raise ValueError(f"image_size_px must be multiples of 32, got {list(self.image_size_px)}")
        if not 0 < self.depth_m[0] < self.depth_m[1]:
            raise ValueError(f"depth_m must be 0 < first < last, got {list(self.depth_m)}")
        return self


class LidarConfig(Section):
    """LiDAR branch: pillars, point net, scatter."""

    range_m: tuple[float, float, float, float, float, float] = Field(
        description="(x_min, y_min, z_min, x_max, y_max, z_max), lidar frame"
    )
    pillar_size_m: Annotated[float, Field(gt=0)]
    max_pillars: Positive
    max_points: Positive = 10
    channels: Positive = 32

    @model_validator(mode="after")
    def _range_fits_pillars(self) -> LidarConfig:
        x0, y0, z0, x1, y1, z1 = self.range_m
        if not (x0 < x1 and y0 < y1 and z0 < z1):
            raise ValueError(f"range_m must be (mins, maxs), got {list(self.range_m)}")
        for axis, extent in (("x", x1 - x0), ("y", y1 - y0)):
            cells = extent / self.pillar_size_m
            if abs(cells - round(cells)) > 1e-6:
                raise ValueError(f"pillar_size_m {self.pillar_size_m} does not divide the {axis} extent {extent:g} m")
        return self


class BevConfig(Section):
    """Fused BEV branch: fuser, SECOND, SECONDFPN."""

    stride: Literal[1, 2, 4, 8] = Field(4, description="BEV cell = pillar_size_m * stride")
    heights_m: tuple[float, ...] = Field((-1.5, -0.5, 0.5, 1.5), min_length=1, description="camera sample heights")
    fused_channels: Positive = 64
    block_channels: tuple[Positive, ...] = Field((64, 128), min_length=1)
    block_layers: tuple[Positive, ...] = Field((3, 3), min_length=1)
    neck_channels: Positive = Field(64, description="channels of each upsampled level; the neck concatenates them")

    @model_validator(mode="after")
    def _lengths_match(self) -> BevConfig:
        if len(self.block_channels) != len(self.block_layers):
            raise ValueError(
                f"block_channels and block_layers must have one length, got {len(self.block_channels)} and "
                f"{len(self.block_layers)}"
            )
        return self


class HeadConfig(Section):
    """CenterPoint-style head."""

    channels: Positive = 64
    top_k: Annotated[int, Field(gt=0, le=500)] = 300
    min_radius_cells: Annotated[int, Field(ge=0)] = Field(2, description="smallest Gaussian of a heatmap target")
    peak_kernel: Literal[1, 3, 5] = Field(3, description="window of the max-pool that keeps peaks")


class ModelConfig(Section):
    """One camera+LiDAR detector of the family; teacher and student are both described by it."""

    camera: CameraConfig
    lidar: LidarConfig
    bev: BevConfig
    head: HeadConfig

    @model_validator(mode="after")
    def _bev_divides(self) -> ModelConfig:
        x0, y0, _, x1, y1, _ = self.lidar.range_m
        step = self.bev.stride * 2 ** (len(self.bev.block_channels) - 1)
        for axis, extent in (("x", x1 - x0), ("y", y1 - y0)):
            cells = round(extent / self.lidar.pillar_size_m)
            if cells % step:
                raise ValueError(
                    f"{cells} pillars along {axis} are not divisible by {step} "
                    f"(bev.stride {self.bev.stride} and {len(self.bev.block_channels)} backbone blocks)"
                )
        return self

    def graph_spec(self, cameras: tuple[str, ...], classes: tuple[str, ...] = CLASS_NAMES) -> GraphSpec:
        """The graph contract of a detector with this configuration."""
        return GraphSpec(
            cameras=cameras,
            image_height_px=self.camera.image_size_px[0],
            image_width_px=self.camera.image_size_px[1],
            feature_stride=self.camera.feature_stride,
            depth_min_m=self.camera.depth_m[0],
            depth_max_m=self.camera.depth_m[1],
            depth_bins=self.camera.depth_bins,
            range_m=self.lidar.range_m,
            pillar_size_m=self.lidar.pillar_size_m,
            bev_stride=self.bev.stride,
            heights_m=self.bev.heights_m,
            max_pillars=self.lidar.max_pillars,
            max_points=self.lidar.max_points,
            top_k=self.head.top_k,
            classes=classes,
        )


class TeacherExpectation(Section):
    """What the teacher must score on the validation split before anything learns from it.

    Both metrics are over the classes that have ground truth in the frames that are looked at.
    """

    mAP: Fraction | None = Field(None, description="distillation stops below it")  # noqa: N815 the metric's own name
    NDS: Fraction | None = Field(None, description="distillation stops below it")
    tolerance: Fraction = Field(0.0, description="how far below a metric may still be")
    frames: Positive | None = Field(
        None, description="evaluate this many frames, spread evenly over the split; absent: all of them"
    )

    @model_validator(mode="after")
    def _some_metric(self) -> TeacherExpectation:
        if not self.metrics:
            raise ValueError("expect needs a metric: mAP, NDS or both")
        return self

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that are asked for, by name."""
        return {name: value for name, value in (("mAP", self.mAP), ("NDS", self.NDS)) if value is not None}


class TeacherConfig(Section):
    """The model to distil from."""

    source: Literal["native"] = "native"
    model: ModelConfig
    checkpoint: str | None = Field(
        None, description="safetensors file, relative to the recipe; absent: the teacher is trained by this recipe"
    )
    sha256: str | None = Field(None, description="expected hash of the checkpoint")
    expect: TeacherExpectation | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="autocast of its forward pass while it teaches; absent: as student.train.precision"
    )
    cache: Literal["fp16", "fp32"] | None = Field(
        None,
        description="keep its head maps in files of this precision, and skip its forward pass where they are known; "
        "for losses that read no features of it",
    )
    train: TrainConfig | None = None

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> TeacherConfig:
        if self.checkpoint is None and self.train is None:
            raise ValueError("teacher needs a 'checkpoint' to load or a 'train' section to make one")
        for number, stage in enumerate(self.train.stages if self.train else (), start=1):
            if stage.losses is not None:
                raise ValueError(f"stage {number} has 'losses', but no distillation term trains a teacher")
        return self


class StudentConfig(Section):
    """The model to deploy."""

    model: ModelConfig
    train: TrainConfig


class ExportConfig(Section):
    """What is exported and for which device."""

    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    target: Annotated[str, AfterValidator(known_target)] = Field(
        "rtx4090", description="name of a file in export/targets"
    )
    keep_fp32: tuple[str, ...] = Field((), description="node-name globs kept in FP32 beyond the built-in islands")
    parity_frames: Positive = 4


class BenchmarkConfig(Section):
    """How artefacts are measured."""

    frames: Positive = Field(50, description="validation frames for latency; accuracy uses the whole split")
    rounds: Positive = 3
    warmup_seconds: Annotated[float, Field(ge=0)] = 1.0
    pictures: Annotated[int, Field(ge=0)] = 2


class GateConfig(Section):
    """One pass/fail criterion on `bench.json`.

    `metric` is mAP, NDS, latency_p50_ms, latency_p90_ms, latency_p99_ms, size_mb, parity_rel_l2. `of` names the row
    it is read from: engine (the artefact measured), teacher, student-torch, onnxruntime, tensorrt, tensorrt_rtx, or
    one of these with its precision (onnxruntime-fp32). With `vs` the gate is on the ratio of / vs (`min_ratio`,
    `max_ratio`) or on the drop vs - of (`max_drop`).
    """

    name: str
    metric: Literal["mAP", "NDS", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "size_mb", "parity_rel_l2"]
    of: BackendReference = Field("engine", description="engine (the artefact measured) or a row of bench.json")
    vs: BackendReference | None = None
    min: float | None = None
    max: float | None = None
    min_ratio: float | None = None
    max_ratio: float | None = None
    max_drop: float | None = None
    device: str | None = Field(None, description="the gate is skipped on any other device")
    required: bool = True

    @model_validator(mode="after")
    def _one_limit(self) -> GateConfig:
        given = [k for k in ("min", "max", "min_ratio", "max_ratio", "max_drop") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"gate '{self.name}' needs exactly one of min, max, min_ratio, max_ratio, max_drop")
        if (given[0] in ("min_ratio", "max_ratio", "max_drop")) != (self.vs is not None):
            raise ValueError(f"gate '{self.name}': 'vs' goes with min_ratio, max_ratio or max_drop, and only with them")
        return self


class Recipe(Section):
    """A whole recipe."""

    schema_: Literal["bevkd.recipe/1"] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    description: str
    seed: int = 0
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    export: ExportConfig
    benchmark: BenchmarkConfig = BenchmarkConfig()
    gates: tuple[GateConfig, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        names = [gate.name for gate in self.gates]
        if len(set(names)) != len(names):
            raise ValueError(f"gate names must be unique, got {names}")
        live = [f"distill.losses.{name}" for name in self.distill.feature_terms()]
        if self.teacher.cache and live:
            raise ValueError(
                f"teacher.cache keeps the teacher's head maps, but {', '.join(live)} read{'s'[len(live) > 1 :]} "
                "features inside it, which takes the live teacher: remove teacher.cache, or these losses"
            )
        self._check_stage_losses()
        return self

    def _check_stage_losses(self) -> None:
        """A stage can only switch terms that the recipe has."""
        terms = list(self.distill.losses.enabled())
        for number, stage in enumerate(self.student.train.stages, start=1):
            for name in stage.losses or ():
                if name not in terms:
                    raise ValueError(
                        f"student.train.stages: stage {number} switches on {name!r}, which is not in distill.losses."
                        f"{did_you_mean(name, terms)} There: {', '.join(terms) or 'nothing'}"
                    )

    def student_spec(self) -> GraphSpec:
        """Graph contract of the student."""
        return self.student.model.graph_spec(self.data.cameras)

    def teacher_spec(self) -> GraphSpec:
        """Input contract of the (native) teacher."""
        return self.teacher.model.graph_spec(self.data.cameras)
