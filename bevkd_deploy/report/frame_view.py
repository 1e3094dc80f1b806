"""One frame to draw: sensor files, calibration and boxes, as `pictures/<token>.json` holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import read_json, write_json

#: Whose boxes a frame may hold.
ACTORS: tuple[str, ...] = ("truth", "teacher", "student")

Row4 = tuple[float, float, float, float]
Matrix4 = tuple[Row4, Row4, Row4, Row4]
PositiveInt = Annotated[int, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FrameBox(_Strict):
    """One box: x, y, z, l, w, h, yaw, vx, vy in the LiDAR frame, geometric centre; `score` is absent for truth.

    An unknown velocity is null.
    """

    box: Annotated[tuple[float | None, ...], Field(min_length=9, max_length=9)]
    label: str
    score: float | None = None

    @model_validator(mode="after")
    def _geometry_is_known(self) -> FrameBox:
        if any(value is None or not np.isfinite(value) for value in self.box[:7]):
            raise ValueError(f"x, y, z, l, w, h and yaw must be finite numbers, got {list(self.box[:7])}")
        return self


class FrameView(_Strict):
    """Everything a picture of one frame needs.

    Attributes:
        token: sample token, which names the picture.
        images: image file of each camera.
        points_path: float32 [N, 5] binary file: x, y, z in metres (lidar frame), intensity, time lag or ring;
            None where the frame has no LiDAR.
        lidar2img: 4x4 projection of each camera to the pixels of its image file.
        image_size_px: (height, width) of each image file.
        range_m: (x_min, y_min, z_min, x_max, y_max, z_max), lidar frame.
        boxes: boxes by actor ("truth", "teacher", "student"); absent actors are not drawn.
    """

    token: str
    images: dict[str, Path]
    points_path: Path | None
    lidar2img: dict[str, Matrix4]
    image_size_px: dict[str, tuple[PositiveInt, PositiveInt]]
    range_m: tuple[float, float, float, float, float, float]
    boxes: dict[str, tuple[FrameBox, ...]]

    @model_validator(mode="after")
    def _consistent(self) -> FrameView:
        for name, cameras in (("lidar2img", set(self.lidar2img)), ("image_size_px", set(self.image_size_px))):
            if cameras != set(self.images):
                raise ValueError(f"{name} must name the cameras of images {sorted(self.images)}, got {sorted(cameras)}")
        unknown = sorted(set(self.boxes) - set(ACTORS))
        if unknown:
            raise ValueError(f"boxes must belong to {list(ACTORS)}, got {unknown}")
        x0, y0, z0, x1, y1, z1 = self.range_m
        if not (x0 < x1 and y0 < y1 and z0 < z1):
            raise ValueError(f"range_m must be (mins, maxs), got {list(self.range_m)}")
        return self

    def shown(self, actor: str, min_score: float) -> list[FrameBox]:
        """Boxes of an actor at or above a score; boxes without a score (truth) always."""
        return [box for box in self.boxes.get(actor, ()) if box.score is None or box.score >= min_score]


def load_frame_view(path: Path | str) -> FrameView:
    """Read a frame file; relative sensor paths are relative to its folder.

    Raises:
        DataError: the file does not follow the model, or a sensor file it names is missing.
    """
    path = Path(path)
    try:
        view = FrameView.model_validate(read_json(path, "frame file"))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise DataError(f"frame file {path}: {problems}") from error
    view = view.model_copy(
        update={
            "points_path": view.points_path and path.parent / view.points_path,
            "images": {camera: path.parent / image for camera, image in view.images.items()},
        }
    )
    for sensor, file in (*view.images.items(), ("points", view.points_path)):
        if file is not None and not file.is_file():
            raise DataError(f"frame file {path} names a {sensor} file that is missing: {file}")
    return view


def write_frame_view(view: FrameView, folder: Path | str) -> Path:
    """Write `<folder>/<token>.json`."""
    return write_json(Path(folder) / f"{view.token}.json", view.model_dump(mode="json"))


def box_array(boxes: list[FrameBox]) -> NDArray[np.float64]:
    """Boxes as float64 [N, 9]; an unknown velocity is NaN."""
    return np.array([box.box for box in boxes], dtype=np.float64).reshape(-1, 9)
