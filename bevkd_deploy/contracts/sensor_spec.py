"""What a teacher outside of the student family is fed, and what its BEV maps cover: contract `bevkd.sensors/1`.

The student takes tables and pillars that its host prepares. A BEVFusion or an mmdet3d model takes the sensors as they
are: images, points and matrices. A batch of them holds, beside the batch axis:

    images       uint8 [N, H, W, 3], RGB, resized and cropped; not there where `cameras` is empty
    points       float32 [P, 5]: x, y, z in metres (augmented lidar frame), intensity 0..255, time lag in seconds;
                 frames with fewer points than the longest of the batch are filled up with rows of zeros
    point_count  int64: points of the frame
    lidar2img    float32 [N, 4, 4], lidar frame before augmentation -> raw pixels, times depth
    cam2img      float32 [N, 4, 4], raw pixels
    cam2lidar    float32 [N, 4, 4], lidar frame before augmentation
    img_aug      float32 [N, 4, 4], raw pixels -> pixels of `images`, in mmdet3d's form: the shift in the last column
    lidar_aug    float32 [4, 4], lidar frame -> the augmented one of the points and the BEV maps
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SENSOR_CONTRACT: Final = "bevkd.sensors/1"

AxisOrder = Literal["yx", "xy"]


class SensorSpec(BaseModel):
    """Images, range and BEV cells of one network.

    Attributes:
        cameras: channels in the order of the network; empty for a LiDAR-only network.
        image_height_px, image_width_px: of the network's images; 0 without cameras.
        image_scale: raw images are resized by this before the crop, which keeps the bottom and the middle; None: to
            `image_width_px`.
        image_resize: the filter of that resize, as the network was trained with.
        range_m: (x_min, y_min, z_min, x_max, y_max, z_max), lidar frame.
        bev_cell_m: side of a cell of the head's maps.
        axis_order: "xy" for maps [B, C, X, Y].
        drop_outside: whether points outside of `range_m` are left out, as mmdet3d's PointsRangeFilter does.
        top_k: boxes of a frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contract: Literal["bevkd.sensors/1"] = SENSOR_CONTRACT
    cameras: tuple[str, ...]
    image_height_px: int = Field(0, ge=0)
    image_width_px: int = Field(0, ge=0)
    image_scale: float | None = Field(None, gt=0)
    image_resize: Literal["pillow_bicubic", "opencv_bilinear"] = "pillow_bicubic"
    range_m: tuple[float, float, float, float, float, float]
    bev_cell_m: float = Field(gt=0)
    axis_order: AxisOrder = "yx"
    drop_outside: bool = True
    classes: tuple[str, ...]
    top_k: int = Field(gt=0)

    @property
    def bev_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the BEV map, whatever order its axes are stored in."""
        x0, y0, _, x1, y1, _ = self.range_m
        return round((y1 - y0) / self.bev_cell_m), round((x1 - x0) / self.bev_cell_m)
