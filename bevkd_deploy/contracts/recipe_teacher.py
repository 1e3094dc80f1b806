"""The teacher section of a recipe: what to distil from, where its weights are, and what it must score."""

from __future__ import annotations

from math import isclose
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_section import Fraction, Positive, Section
from bevkd_deploy.contracts.recipe_training import TrainConfig

#: Classes in the order of BEVFusion's heatmap, mmdet3d's and mit-han-lab's; it is not the order of `CLASS_NAMES`.
BEVFUSION_CLASSES: tuple[str, ...] = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)


class BevFusionGeometry(Section):
    """Grid, images and classes of a BEVFusion checkpoint; by default those of mmdet3d's nuScenes configuration."""

    image_size_px: tuple[Positive, Positive] = Field((256, 704), description="(height, width) of the network input")
    image_scale: Annotated[float, Field(gt=0)] = Field(0.48, description="raw images are resized by this, then cropped")
    feature_stride: Positive = Field(8, description="pixels of the network input a cell of the neck's first level")
    depth_m: tuple[float, float] = Field((1.0, 60.0), description="(first, last) depth of the bins")
    depth_step_m: Annotated[float, Field(gt=0)] = 0.5
    camera_cell_m: Annotated[float, Field(gt=0)] = Field(0.3, description="BEV cell that camera features are lifted to")
    camera_z_m: tuple[float, float] = Field((-10.0, 10.0), description="height range of the lifted features")
    camera_downsample: Positive = Field(2, description="how much the view transform coarsens its BEV map")
    range_m: tuple[float, float, float, float, float, float] = Field(
        (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), description="(x_min, y_min, z_min, x_max, y_max, z_max), lidar frame"
    )
    voxel_size_m: tuple[float, float, float] = Field((0.075, 0.075, 0.2), description="(x, y, z)")
    max_points: Positive = Field(10, description="points a voxel")
    max_voxels: Positive = Field(160000, description="voxels a frame, as at test time")
    bev_stride: Positive = Field(8, description="BEV cell = voxel size * this (mmdet3d's out_size_factor)")
    proposals: Positive = Field(200, description="boxes a frame")
    post_center_range_m: tuple[float, float, float, float, float, float] = Field(
        (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0), description="as range_m: boxes centred outside of it are no detections"
    )
    classes: tuple[str, ...] = Field(
        BEVFUSION_CLASSES, min_length=1, description="in the order of the checkpoint's heatmap"
    )

    @model_validator(mode="after")
    def _fits(self) -> BevFusionGeometry:
        if not 0 < self.depth_m[0] < self.depth_m[1]:
            raise ValueError(f"depth_m must be 0 < first < last, got {list(self.depth_m)}")
        low, high = self.range_m[:3], self.range_m[3:]
        for axis, start, end, size in zip("xyz", low, high, self.voxel_size_m, strict=True):
            if not (start < end and size > 0):
                raise ValueError(f"range_m must be (mins, maxs) and voxel_size_m positive; along {axis} they are not")
            cells = (end - start) / size
            if not isclose(cells, round(cells), abs_tol=1e-3):
                raise ValueError(f"voxel_size_m {size:g} does not divide the {axis} extent {end - start:g} m")
        if not isclose(self.voxel_size_m[0], self.voxel_size_m[1], rel_tol=1e-6):
            raise ValueError(f"BEV cells must be squares, but voxel_size_m is {list(self.voxel_size_m)}")
        if any(cells % self.bev_stride for cells in self.grid_size[:2]):
            raise ValueError(f"bev_stride {self.bev_stride} does not divide the grid {list(self.grid_size[:2])}")
        camera_cell_m = self.camera_cell_m * self.camera_downsample
        if not isclose(camera_cell_m, self.bev_cell_m, rel_tol=1e-6):
            raise ValueError(
                f"the camera's BEV cell {camera_cell_m:g} m (camera_cell_m * camera_downsample) is not the LiDAR's "
                f"{self.bev_cell_m:g} m (voxel_size_m * bev_stride)"
            )
        if any(side % self.feature_stride for side in self.image_size_px):
            raise ValueError(f"image_size_px must be multiples of feature_stride, got {list(self.image_size_px)}")
        return self

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        low, high = self.range_m[:3], self.range_m[3:]
        x, y, z = (round((b - a) / size) for a, b, size in zip(low, high, self.voxel_size_m, strict=True))
        return x, y, z

    @property
    def bev_cell_m(self) -> float:
        """Side of a cell of the fused map and the heatmap."""
        return self.voxel_size_m[0] * self.bev_stride


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


#: Keys of the section that go with one source alone.
_KEYS_OF = {
    "native": ("model", "train"),
    "bevfusion": ("geometry",),
    "mmdet3d": ("config", "import_paths", "cfg_options", "skip_steps", "bev_stride"),
}


class TeacherConfig(Section):
    """The model to distil from.

    `source: native` is a network of the student's family, trained by this recipe or loaded; `bevfusion` is a checkpoint
    of mmdet3d's or mit-han-lab's BEVFusion, read without mmdet3d; `mmdet3d` is any detector of mmdet3d, which must be
    installed where it runs.
    """

    source: Literal["native", "bevfusion", "mmdet3d"] = "native"
    model: ModelConfig | None = Field(None, description="source native: the network")
    geometry: BevFusionGeometry | None = Field(
        None, description="source bevfusion: where it differs from mmdet3d's nuScenes configuration"
    )
    config: str | None = Field(None, description="source mmdet3d: its configuration file (.py), relative to the recipe")
    import_paths: tuple[str, ...] = Field(
        (), description="source mmdet3d: folders from which the configuration's custom_imports are imported"
    )
    cfg_options: tuple[str, ...] = Field(
        (), description="source mmdet3d: dotted.key=value to set in its configuration, as --cfg-options of mmdet3d"
    )
    skip_steps: tuple[str, ...] = Field(
        (), description="source mmdet3d: steps of its test pipeline that change nothing in the recipe's data"
    )
    bev_stride: Positive | None = Field(
        None, description="source mmdet3d: voxels along a cell of the head's maps, where its configuration does not say"
    )
    checkpoint: str | None = Field(
        None, description="weights, relative to the recipe; absent: the (native) teacher is trained by this recipe"
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
    def _keys_fit_source(self) -> TeacherConfig:
        for source, keys in _KEYS_OF.items():
            strangers = [key for key in keys if source != self.source and getattr(self, key)]
            if strangers:
                raise ValueError(f"{', '.join(strangers)} goes with source: {source}, but source is {self.source}")
        needed: dict[str, tuple[str, ...]] = {"native": ("model",), "bevfusion": ("checkpoint",)}
        needed["mmdet3d"] = ("config", "checkpoint")
        missing = [key for key in needed[self.source] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"source {self.source} needs {' and '.join(repr(key) for key in missing)}")
        return self

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> TeacherConfig:
        if self.checkpoint is None and self.train is None:
            raise ValueError("teacher needs a 'checkpoint' to load or a 'train' section to make one")
        for number, stage in enumerate(self.train.stages if self.train else (), start=1):
            if stage.losses is not None:
                raise ValueError(f"stage {number} has 'losses', but no distillation term trains a teacher")
        return self

    @property
    def native_model(self) -> ModelConfig:
        """The network of a native teacher; only asked for there."""
        assert self.model is not None
        return self.model

    def identity(self) -> dict[str, Any]:
        """What decides its outputs beside the weights, as JSON values."""
        deciding = {"source", "model", "geometry", "cfg_options", "skip_steps", "bev_stride"}
        return self.model_dump(mode="json", include=deciding, exclude_defaults=True) | {"source": self.source}
