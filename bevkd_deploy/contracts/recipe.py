"""The recipe schema: one YAML file names data, teacher, student, distillation, export, benchmark and gates.

Plain values only. `recipe_loader` reads YAML into these models and reports every problem at once; `Recipe`
derives nothing but `GraphSpec`s, so each number stands in exactly one place.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import DistillConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_section import Positive, Section
from bevkd_deploy.contracts.recipe_teacher import TeacherConfig
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
        if self.teacher.source != "native":
            self._check_foreign_teacher()
        self._check_stage_losses()
        return self

    def _check_foreign_teacher(self) -> None:
        """A teacher of another architecture has no weights to inherit, and a TransFusion head no box maps."""
        if self.distill.inherit is not None:
            raise ValueError(
                f"distill.inherit copies weights layer by layer, but the teacher (source: {self.teacher.source}) has "
                "another architecture than the student: remove 'inherit'"
            )
        if self.teacher.source == "bevfusion" and "boxes" in self.distill.losses.enabled():
            raise ValueError(
                "distill.losses.boxes compares dense box maps, which BEVFusion's TransFusion head does not have: use "
                "distill.labels, which learns from its decoded boxes"
            )

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
        """Input contract of a native teacher."""
        return self.teacher.native_model.graph_spec(self.data.cameras)
