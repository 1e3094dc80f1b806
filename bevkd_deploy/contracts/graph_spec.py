"""The student graph contract `bevkd.student/1`: everything a host needs to feed the graph and read it.

One `GraphSpec` is derived from a recipe's model section, stored in each artefact's sidecar, and read by
training, evaluation and deployment alike. There is no second copy of any of these numbers.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from bevkd_deploy.contracts.classes import CLASS_NAMES

STUDENT_CONTRACT: Final = "bevkd.student/1"


class TensorSpec(BaseModel):
    """Name, dtype, static shape and meaning of one graph input or output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Literal["uint8", "int32", "float32"]
    shape: tuple[int, ...]
    meaning: str


class GraphSpec(BaseModel):
    """Geometry and sizes of one exported graph.

    `range_m` is (x_min, y_min, z_min, x_max, y_max, z_max) in the LiDAR frame. The pillar canvas has cells of
    `pillar_size_m`; the BEV map has cells of `pillar_size_m * bev_stride`. Depth bins are `depth_bins` equal
    steps over [depth_min_m, depth_max_m) along the camera's optical axis.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contract: Literal["bevkd.student/1"] = STUDENT_CONTRACT
    cameras: tuple[str, ...] = Field(min_length=1)
    image_height_px: int = Field(gt=0)
    image_width_px: int = Field(gt=0)
    feature_stride: int = Field(gt=0)
    depth_min_m: float
    depth_max_m: float
    depth_bins: int = Field(gt=0)
    range_m: tuple[float, float, float, float, float, float]
    pillar_size_m: float = Field(gt=0)
    bev_stride: int = Field(gt=0)
    heights_m: tuple[float, ...] = Field(min_length=1)
    max_pillars: int = Field(gt=0)
    max_points: int = Field(gt=0)
    top_k: int = Field(gt=0, le=500)
    classes: tuple[str, ...] = CLASS_NAMES

    @property
    def pillar_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the pillar canvas."""
        x0, y0, _, x1, y1, _ = self.range_m
        return round((y1 - y0) / self.pillar_size_m), round((x1 - x0) / self.pillar_size_m)

    @property
    def bev_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the BEV map."""
        rows, columns = self.pillar_shape_yx
        return rows // self.bev_stride, columns // self.bev_stride

    @property
    def bev_cell_m(self) -> float:
        """Side of a cell of the BEV map."""
        return self.pillar_size_m * self.bev_stride

    @property
    def axis_order(self) -> Literal["yx"]:
        """Of its BEV maps: [B, C, Y, X]."""
        return "yx"

    @property
    def feature_shape_hw(self) -> tuple[int, int]:
        """Rows and columns of one camera's feature map."""
        return self.image_height_px // self.feature_stride, self.image_width_px // self.feature_stride

    @property
    def pillar_dump_index(self) -> int:
        """Row of the pillar canvas that padding points to."""
        rows, columns = self.pillar_shape_yx
        return rows * columns

    @property
    def pixel_dump_index(self) -> int:
        """Row of the flattened image features that BEV cells outside every camera point to."""
        height, width = self.feature_shape_hw
        return len(self.cameras) * height * width

    @property
    def depth_dump_index(self) -> int:
        """Row of the flattened depth distribution that BEV cells outside every depth bin point to."""
        return self.pixel_dump_index * self.depth_bins

    def inputs(self) -> tuple[TensorSpec, ...]:
        """The six graph inputs, in order."""
        rows, columns = self.bev_shape_yx
        lut = (len(self.heights_m), rows * columns)
        image = (len(self.cameras), self.image_height_px, self.image_width_px, 3)
        return (
            TensorSpec(name="images", dtype="uint8", shape=image, meaning="RGB, resized and cropped by the host"),
            TensorSpec(
                name="pillars",
                dtype="float32",
                shape=(self.max_pillars, self.max_points, 5),
                meaning="x, y, z in metres (lidar frame), intensity 0..255, time lag in seconds; zero-padded",
            ),
            TensorSpec(
                name="pillar_count",
                dtype="int32",
                shape=(self.max_pillars,),
                meaning="points in each pillar, 0 for padding",
            ),
            TensorSpec(
                name="pillar_index",
                dtype="int32",
                shape=(self.max_pillars,),
                meaning="y * X + x of the pillar's cell; padding points to the dump row Y * X",
            ),
            TensorSpec(
                name="lut_pixel",
                dtype="int32",
                shape=lut,
                meaning="per height and BEV cell: (cam * h + v) * w + u, or the dump row N * h * w",
            ),
            TensorSpec(
                name="lut_depth",
                dtype="int32",
                shape=lut,
                meaning="lut_pixel * D + depth bin, or the dump row N * h * w * D",
            ),
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The three graph outputs, in order."""
        return (
            TensorSpec(
                name="boxes",
                dtype="float32",
                shape=(self.top_k, 9),
                meaning="x, y, z, l, w, h in metres, yaw in radians, vx, vy in m/s; lidar frame, geometric centre",
            ),
            TensorSpec(name="scores", dtype="float32", shape=(self.top_k,), meaning="0..1, descending"),
            TensorSpec(name="labels", dtype="int32", shape=(self.top_k,), meaning="index into classes"),
        )
