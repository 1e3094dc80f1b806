"""From the inputs of contract `bevkd.sensors/1` to the batch that an mmdet3d detector's data preprocessor takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.teachers.mmdet3d_config import Mmdet3dOptions, test_pipeline

ImageChannels = Literal["rgb", "bgr"]

_POINTS, _SWEEPS, _RANGE = "LoadPointsFromFile", "LoadPointsFromMultiSweeps", "PointsRangeFilter"
_IMAGES = ("LoadMultiViewImageFromFiles", "BEVLoadMultiViewImageFromFiles")
_IMAGE_CROP = "ImageAug3D"

#: Steps that change neither points nor images, as long as their numbers say so.
_NEUTRAL = ("MultiScaleFlipAug3D", "GlobalRotScaleTrans", "RandomFlip3D", "LoadAnnotations3D", "Pack3DDetInputs")

#: Column of a nuScenes file that is the ring without LoadPointsFromMultiSweeps and the time lag after it.
_LAG_COLUMN = 4


#: Our name of each matrix by mmdet3d's.
_CAMERA_MATRICES = {
    "lidar2img": "lidar2img", "cam2img": "cam2img", "cam2lidar": "cam2lidar", "img_aug_matrix": "img_aug",
    "lidar_aug_matrix": "lidar_aug",
}  # fmt: skip


@dataclass(frozen=True)
class ImageInput:
    """Images of the network.

    Attributes:
        size_px: (height, width) after the crop.
        scale: of the resize before it.
        channels: order in which the network's loader hands them over.
    """

    size_px: tuple[int, int]
    scale: float
    channels: ImageChannels


@dataclass(frozen=True)
class PointInput:
    """Points of the network.

    Attributes:
        columns: of (x, y, z, intensity, time lag), in the network's order.
        sweeps: LiDAR turns before the keyframe that it was configured with.
        range_m: points outside are dropped; None keeps all.
    """

    columns: tuple[int, ...]
    sweeps: int
    range_m: tuple[float, ...] | None


@dataclass(frozen=True)
class Mmdet3dInputs:
    """What the test pipeline of a configuration hands to its model; `images` is None for LiDAR alone."""

    points: PointInput
    images: ImageInput | None

    @classmethod
    def of(cls, config: Any, path: Path, options: Mmdet3dOptions) -> Mmdet3dInputs:
        """Read the test pipeline of a configuration.

        Raises:
            UsageError: a step does something that our inputs cannot stand in for.
        """
        steps = test_pipeline(config, path)
        known = (_POINTS, _SWEEPS, _RANGE, *_IMAGES, _IMAGE_CROP, *_NEUTRAL, *options.skip_steps)
        strange = [step["type"] for step in steps if _short(step["type"]) not in known]
        strange += [step["type"] for step in steps if _short(step["type"]) in _NEUTRAL and not _is_neutral(step)]
        if strange:
            raise UsageError(
                f"mmdet3d config {path}: its test pipeline has steps whose effect on points or images is not known "
                f"here: {', '.join(strange)}. Known: {', '.join(known)}. If they change neither on your data, name "
                "them in teacher.skip_steps"
            )
        by_type = {_short(step["type"]): step for step in steps if _short(step["type"]) not in options.skip_steps}
        has_images = bool(config.model.get("img_backbone"))
        return cls(_point_input(by_type, path), _image_input(by_type, path) if has_images else None)

    def batch(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Inputs of contract `bevkd.sensors/1`, batched -> {"inputs", "data_samples"} of mmdet3d.

        Images come as [N, 3, H, W] in the network's channel order; the data preprocessor normalises and voxelizes.
        """
        from mmdet3d.structures import Box3DMode, Det3DDataSample, LiDARInstance3DBoxes

        counts = inputs["point_count"].tolist()
        batch: dict[str, Any] = {"points": [self._points(p[:n]) for p, n in zip(inputs["points"], counts, strict=True)]}
        metas: list[dict[str, Any]] = [
            {"box_type_3d": LiDARInstance3DBoxes, "box_mode_3d": Box3DMode.LIDAR, "num_pts_feats": points.shape[1]}
            for points in batch["points"]
        ]
        matrices = _CAMERA_MATRICES if self.images is not None else {}
        for theirs, ours in matrices.items():
            for meta, of_frame in zip(metas, inputs[ours].cpu().numpy(), strict=True):
                meta[theirs] = of_frame
        if self.images is not None:
            batch["img"] = [self._images(images) for images in inputs["images"]]
        samples = [Det3DDataSample(metainfo=meta) for meta in metas]
        return {"inputs": batch, "data_samples": samples}

    def _points(self, points: Tensor) -> Tensor:
        if self.points.range_m is not None:
            low, high = points.new_tensor(self.points.range_m).chunk(2)
            points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(dim=1)]
        return points[:, list(self.points.columns)]

    def _images(self, images: Tensor) -> Tensor:
        """[N, H, W, 3] RGB -> [N, 3, H, W]."""
        assert self.images is not None
        ordered = images if self.images.channels == "rgb" else images.flip(-1)
        return ordered.permute(0, 3, 1, 2).contiguous()


def _point_input(steps: Mapping[str, Mapping[str, Any]], path: Path) -> PointInput:
    loader = steps.get(_POINTS)
    if loader is None:
        raise UsageError(f"mmdet3d config {path}: its test pipeline has no {_POINTS}; only detectors with LiDAR teach")
    for key in ("norm_intensity", "norm_elongation", "shift_height", "use_color"):
        if loader.get(key):
            raise UsageError(f"mmdet3d config {path}: {_POINTS} with {key}=True changes point features as ours are not")
    columns = _columns(loader.get("use_dim", [0, 1, 2]))
    sweeps = steps.get(_SWEEPS)
    if sweeps is not None:
        if columns != tuple(range(_LAG_COLUMN + 1)):
            raise UsageError(f"mmdet3d config {path}: {_POINTS} before {_SWEEPS} needs use_dim=5, got {list(columns)}")
        columns = _columns(sweeps.get("use_dim", [0, 1, 2, 4]))
    elif _LAG_COLUMN in columns:
        raise UsageError(
            f"mmdet3d config {path}: without {_SWEEPS} column {_LAG_COLUMN} of the points is the LiDAR's ring, which "
            "is not among our inputs (x, y, z, intensity, time lag)"
        )
    if max(columns) > _LAG_COLUMN:
        raise UsageError(f"mmdet3d config {path}: points have the columns 0 to {_LAG_COLUMN}, use_dim says {columns}")
    filtered = steps.get(_RANGE)
    range_m = None if filtered is None else tuple(float(edge) for edge in filtered["point_cloud_range"])
    return PointInput(columns, 0 if sweeps is None else int(sweeps.get("sweeps_num", 10)), range_m)


def _image_input(steps: Mapping[str, Mapping[str, Any]], path: Path) -> ImageInput:
    loader = next((steps[name] for name in _IMAGES if name in steps), None)
    crop = steps.get(_IMAGE_CROP)
    if loader is None or crop is None:
        raise UsageError(
            f"mmdet3d config {path}: the model has cameras; of camera pipelines the adapter knows one of "
            f"{' or '.join(_IMAGES)}, then {_IMAGE_CROP}"
        )
    if crop.get("is_train") or any(crop.get("bot_pct_lim", (0, 0))):
        raise UsageError(f"mmdet3d config {path}: {_IMAGE_CROP} of the test pipeline must keep the bottom of the image")
    height_px, width_px = crop["final_dim"]
    low, high = crop["resize_lim"]
    return ImageInput((int(height_px), int(width_px)), (low + high) / 2, _channels(loader))


def _channels(loader: Mapping[str, Any]) -> ImageChannels:
    """The order in which an image loader hands out channels: it is given a red picture.

    The loader of mmdet3d gives BGR, that of its BEVFusion BGR or RGB depending on the version, and no configuration
    says so.
    """
    import cv2
    import numpy as np
    from mmdet3d.registry import TRANSFORMS
    from mmengine.registry import DefaultScope

    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "red.png")
        cv2.imwrite(picture, np.full((4, 4, 3), (0, 0, 255), np.uint8))
        camera = {"img_path": picture, "cam2img": np.eye(3).tolist(), "lidar2cam": np.eye(4).tolist()}
        with DefaultScope.overwrite_default_scope("mmdet3d"):  # a Runner may have left another one
            step = TRANSFORMS.build({**loader, "backend_args": None})
        loaded = step.transform({"images": {"CAM_FRONT": camera}})["img"][0]
    return "rgb" if loaded[0, 0, 0] > loaded[0, 0, 2] else "bgr"


def _is_neutral(step: Mapping[str, Any]) -> bool:
    """Whether the numbers of a step of `_NEUTRAL` leave points and images as they are."""
    if any(step.get(key) for key in ("flip_ratio_bev_horizontal", "flip_ratio_bev_vertical")):
        return False
    if _short(step["type"]) != "GlobalRotScaleTrans":
        return True
    # Its own defaults rotate and scale, so that a missing key is no zero.
    turns = _flat([step.get("rot_range", [-0.785, 0.785]), step.get("translation_std", 0)])
    return not any(turns) and set(_flat(step.get("scale_ratio_range", [0.95, 1.05]))) == {1.0}


def _flat(values: Any) -> list[float]:
    if isinstance(values, (list, tuple)):
        return [number for value in values for number in _flat(value)]
    return [float(values)]


def _columns(use_dim: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(range(use_dim)) if isinstance(use_dim, int) else tuple(use_dim)


def _short(step_type: str) -> str:
    return step_type.rsplit(".", 1)[-1]  # "mmdet3d.PointsRangeFilter"
