"""mmdet3d's pipeline results as inputs of our networks, and their way to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmdet3d.registry import MODELS, TRANSFORMS
from mmengine.model import BaseDataPreprocessor
from numpy.typing import NDArray
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.augment import FrameAug, augment_points, draw_frame_aug
from bevkd_deploy.data.dataset import batched, image_warps, input_key, preprocessor_for
from bevkd_deploy.data.sensor_inputs import SensorPreprocessor, fit_sensor_image
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.geometry.boxes import augment_boxes
from bevkd_deploy.geometry.camera_lut import ImageFit, fit_image
from bevkd_deploy.geometry.frames import invert
from bevkd_deploy.mmdet3d.boxes import from_lidar_boxes, label_map, require_classes, to_lidar_boxes
from bevkd_deploy.mmdet3d.recipes import load_for_runner, open_spec
from bevkd_deploy.mmdet3d.results import ChannelOrder, SensorResults, read_results
from bevkd_deploy.runtime.preprocess import Preprocessor

#: What mmdet3d's transforms before this one leave behind and nothing after it needs.
_HEAVY_KEYS = ("img", "points")


@TRANSFORMS.register_module()
class BevkdInputs(BaseTransform):
    """The last transform of a pipeline: sensors, matrices and boxes become our inputs and targets.

    It stands in the place of Pack3DDetInputs. Images are resized, points become pillars and calibrations become camera
    tables by the preprocessing that ships to the board. Augmentation is either the recipe's (`augment=True`), drawn
    here, or that of transforms before this one, whose matrices the camera tables follow: GlobalRotScaleTrans,
    ObjectSample, BEVFusionRandomFlip3D, BEVFusionGlobalRotScaleTrans, ImageAug3D.
    """

    def __init__(
        self,
        recipe: str,
        classes: Sequence[str],
        image_channels: ChannelOrder,
        teacher: bool = False,
        augment: bool = False,
        overrides: Sequence[str] = (),
    ) -> None:
        """Read the recipe.

        Args:
            recipe: file or name of a bevkd recipe.
            classes: of the dataset, in its order: what `metainfo=dict(classes=...)` says.
            image_channels: 'bgr' after LoadMultiViewImageFromFiles, 'rgb' after BEVLoadMultiViewImageFromFiles.
            teacher: make the teacher's inputs too, for BevkdDistillation.
            augment: draw the recipe's student.train.augmentation; for the training pipeline alone.
            overrides: KEY=VALUE of the recipe, as those of the model.

        Raises:
            UsageError: the student does not know a class, or the channel order is neither of both.
            RecipeError: the recipe is wrong.
        """
        super().__init__()
        loaded = load_for_runner(recipe, overrides)
        if image_channels not in ("bgr", "rgb"):
            raise UsageError(f"BevkdInputs: image_channels is 'bgr' or 'rgb', got {image_channels!r}")
        self.spec = loaded.recipe.student_spec()
        specs: dict[str, GraphSpec | SensorSpec] = {"student": self.spec}
        if teacher and input_key(found := open_spec(loaded)) != input_key(self.spec):
            specs["teacher"] = found
        self.preprocessors = {name: preprocessor_for(spec) for name, spec in specs.items()}
        self.classes = require_classes(classes, self.spec.classes)
        self.image_channels = image_channels
        self.min_radius_cells = loaded.recipe.student.model.head.min_radius_cells
        self.augmentation = loaded.recipe.student.train.augmentation if augment else None
        if self.augmentation is not None and self.augmentation.paste is not None:
            raise UsageError(
                "BevkdInputs(augment=True) pastes no objects: put mmdet3d's ObjectSample before it and say "
                "overrides=['student.train.augmentation.paste=null'], here and in the model"
            )
        self._to_student = label_map(self.classes, self.spec.classes)
        self._pack = Pack3DDetInputs(keys=("gt_bboxes_3d", "gt_labels_3d"))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Results of the pipeline -> `inputs` ("student", "teacher", "targets") and `data_samples`.

        Targets are made where the pipeline has loaded boxes (LoadAnnotations3D).

        Raises:
            UsageError: a transform is missing, or one before this cannot be followed.
        """
        frame = read_results(results, self.image_channels)
        drawn = self._draw(frame)
        points, bev_aug = frame.points, frame.bev_aug
        if drawn.bev_aug is not None:
            points = augment_points(points, drawn.bev_aug)
            bev_aug = drawn.bev_aug if bev_aug is None else drawn.bev_aug @ bev_aug
        inputs = {
            name: _network_inputs(name, preprocessor, frame, points, bev_aug, drawn)
            for name, preprocessor in self.preprocessors.items()
        }
        light = {key: value for key, value in results.items() if key not in _HEAVY_KEYS}
        if "gt_bboxes_3d" in results:
            boxes, labels = self._objects(results)
            if drawn.bev_aug is not None:
                boxes = augment_boxes(boxes, drawn.bev_aug)
            targets = center_targets(boxes, self._to_student[labels], self.spec, self.min_radius_cells)
            inputs["targets"] = {name: torch.from_numpy(array) for name, array in targets.items()}
            light |= {"gt_bboxes_3d": to_lidar_boxes(boxes), "gt_labels_3d": labels}
        sample = self._pack.transform(light)["data_samples"]
        sample.set_metainfo({"classes": self.classes})
        return {"inputs": inputs, "data_samples": sample}

    def _draw(self, frame: SensorResults) -> FrameAug:
        """The recipe's augmentation of this frame; NumPy's global generator is the one that mmengine seeds."""
        if self.augmentation is None:
            return FrameAug()
        if frame.img_aug is not None and not self.augmentation.views_are_off:
            raise UsageError(
                "images are augmented twice, by the pipeline (img_aug_matrix) and by the recipe's "
                "student.train.augmentation.image; keep one of both"
            )
        aspect = self.spec.image_height_px / self.spec.image_width_px
        cameras = list(dict.fromkeys(camera for made in self.preprocessors.values() for camera in made.spec.cameras))
        seed = [int(np.random.randint(2**31))]
        return draw_frame_aug(self.augmentation, frame.calibration, cameras, aspect, seed)

    def _objects(self, results: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Boxes [N, 9] and labels [N] in the dataset's classes; mmdet3d marks other categories with -1."""
        labels = np.asarray(results["gt_labels_3d"], dtype=np.int64)
        if len(labels) and labels.max() >= len(self.classes):
            raise UsageError(
                f"the dataset gives label {labels.max()}, but BevkdInputs was told {len(self.classes)} classes: "
                f"{', '.join(self.classes)}; give it those of the dataset's metainfo"
            )
        return from_lidar_boxes(results["gt_bboxes_3d"])[labels >= 0], labels[labels >= 0]


@MODELS.register_module()
class BevkdDataPreprocessor(BaseDataPreprocessor):
    """Batches what BevkdInputs made and moves it to the device; the networks normalise images themselves."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Collated samples -> the arguments of the model."""
        inputs = data["inputs"]
        batch = {name: batched(_frames(parts)) for name, parts in inputs.items()}
        cast: dict[str, Any] = self.cast_data({"inputs": batch, "data_samples": data["data_samples"]})
        return cast


def _frames(parts: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Tensor]]:
    """One dict a frame of what mmengine's pseudo_collate turned into one list a name."""
    count = len(next(iter(parts.values())))
    return [{name: tensors[row] for name, tensors in parts.items()} for row in range(count)]


def _network_inputs(
    name: str,
    preprocessor: Preprocessor | SensorPreprocessor,
    frame: SensorResults,
    points: NDArray[np.float32],
    bev_aug: NDArray[np.float64] | None,
    drawn: FrameAug,
) -> dict[str, Tensor]:
    """The inputs of one network for one frame."""
    spec = preprocessor.spec
    missing = [camera for camera in spec.cameras if camera not in frame.images]
    if missing:
        raise UsageError(f"the {name} takes cameras {missing}, which the dataset does not have: {list(frame.images)}")
    chosen = [frame.images[camera] for camera in spec.cameras]
    if frame.img_aug is None or not spec.cameras:
        img_aug = image_warps(preprocessor, frame.calibration, drawn)
        images = preprocessor.images(chosen, img_aug)
    else:
        images = _ready_images(name, spec, chosen)
        raw = dict(zip(frame.calibration.cameras, frame.calibration.image_sizes_px, strict=True))
        img_aug = {
            camera: frame.img_aug[camera] @ invert(_fit(spec, raw[camera]).matrix(raw[camera]))
            for camera in spec.cameras
        }
    feed = preprocessor.inputs(images, points, frame.calibration, bev_aug, img_aug)
    return {key: torch.from_numpy(array) for key, array in feed.items()}


def _ready_images(name: str, spec: GraphSpec | SensorSpec, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images that a transform of the pipeline has brought to the network's size."""
    wanted = (spec.image_height_px, spec.image_width_px)
    sizes = {image.shape[:2] for image in images}
    if sizes - {wanted}:
        raise UsageError(
            f"the pipeline's ImageAug3D makes images of (height, width) {sorted(sizes)}, the {name} takes {wanted}: "
            f"set final_dim={wanted}, or leave it out and set BevkdInputs(augment=True)"
        )
    return np.stack(images)


def _fit(spec: GraphSpec | SensorSpec, raw_hw_px: tuple[int, int]) -> ImageFit:
    """How a network's own preprocessing would bring a raw image to its size."""
    return fit_sensor_image(raw_hw_px, spec) if isinstance(spec, SensorSpec) else fit_image(raw_hw_px, spec)
