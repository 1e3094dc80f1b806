"""The model sections of a recipe: one camera+LiDAR detector of the student family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_section import Positive, Section


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
