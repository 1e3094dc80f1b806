"""Any single-stage mmdet3d detector as a teacher: built from its own configuration, fed and read in our conventions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import CannotRunHere, UsageError
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.models.network import Boxes, DetectionNetwork
from bevkd_deploy.models.weights_file import WeightsFile, read_weights
from bevkd_deploy.teachers.mmdet3d_checkpoint import classes_of, load_into
from bevkd_deploy.teachers.mmdet3d_config import Mmdet3dOptions, build_detector_of, class_names, read_config
from bevkd_deploy.teachers.mmdet3d_heads import AnchorHeadReader, HeadReader, copied, head_reader, padded_boxes
from bevkd_deploy.teachers.mmdet3d_inputs import Mmdet3dInputs

#: Relative tolerance of numbers that a configuration writes twice.
_SAME = 1e-4


class Mmdet3dDetector(DetectionNetwork):
    """An mmdet3d detector under the teacher contract, always in evaluation mode and without gradients.

    Its modules are the detector's own, by mmdet3d's names (`pts_backbone`, `pts_neck`, `pts_bbox_head`, ...), so that
    taps read them. Ground truth and losses are never touched.

    Attributes:
        spec: what it is fed and what its maps cover; `spec.classes` is the order of its labels.
        inputs: how its own pipeline prepares points and images.
        family: of its head.
        sha256: of its checkpoint; None without one.
    """

    def __init__(self, detector: Any, reader: HeadReader, inputs: Mmdet3dInputs, spec: SensorSpec) -> None:
        super().__init__()
        # Its modules become ours under their own names, while the detector itself stays out of sight: a tap says
        # pts_neck as in mmdet3d, not detector.pts_neck.
        self._modules, self._parameters, self._buffers = detector._modules, detector._parameters, detector._buffers
        self.__dict__["_detector"] = detector
        self._reader = reader
        self.spec = spec
        self.inputs = inputs
        self.family = reader.family
        self.sha256: str | None = None
        self.train(False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Mmdet3dDetector:
        """Stay in evaluation mode, whatever is asked for."""
        super().train(False)
        self.__dict__["_detector"].training = False
        return self

    @torch.no_grad()
    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Inputs of contract `bevkd.sensors/1`, batched -> dense maps and decoded boxes.

        Returns:
            heatmap [B, K, ., .] class logits in `spec.axis_order` and `spec.classes`; boxes [B, Q, 9] (lidar frame,
            geometric centre), scores [B, Q] descending, labels [B, Q] int64, filled up with zeros; of a CenterHead
            also the maps of `BOX_MAPS` [B, C, Y, X], in each cell those of the task with the highest heat.

        Raises:
            CannotRunHere: the network has operators for CUDA alone and the inputs are on a CPU.
            UsageError: its maps do not cover the range of its configuration.
        """
        detector = self.__dict__["_detector"]
        device = inputs["points"].device
        if device.type == "cpu":
            _check_runs_on_cpu(self)
        preprocessor = self._modules["data_preprocessor"]
        assert preprocessor is not None
        if preprocessor.device != device:  # it remembers a device of its own, which moving its parent does not change
            preprocessor.to(device)
        batch = preprocessor(self.inputs.batch(inputs), False)
        metas = [sample.metainfo for sample in batch["data_samples"]]
        outputs = self._reader.run(_features(detector, batch["inputs"], metas), metas)
        maps = self._reader.maps(outputs)
        self._check_grid(maps["heatmap"])
        return {**maps, **padded_boxes(self._reader.predict(copied(outputs), metas), self.spec.top_k)}

    def decode(self, maps: dict[str, Tensor]) -> Boxes:
        """The boxes, scores and labels of `forward`, which mmdet3d's own decoding made."""
        return maps["boxes"], maps["scores"], maps["labels"].long()

    def _check_grid(self, heatmap: Tensor) -> None:
        rows, columns = self.spec.bev_shape_yx
        expected = (rows, columns) if self.spec.axis_order == "yx" else (columns, rows)
        if tuple(heatmap.shape[-2:]) != expected:
            raise UsageError(
                f"the head's maps are {tuple(heatmap.shape[-2:])}, but range {list(self.spec.range_m)} in cells of "
                f"{self.spec.bev_cell_m:g} m makes {expected}: give teacher.bev_stride, the voxels along a cell"
            )


def build_mmdet3d_teacher(
    config_path: Path,
    checkpoint_path: Path | None,
    cameras: Sequence[str],
    options: Mmdet3dOptions | None = None,
    sha256: str | None = None,
) -> Mmdet3dDetector:
    """Build a detector from its own mmdet3d configuration and load its weights.

    The configuration is a Python program and is run. The checkpoint is read without running anything.

    Args:
        config_path: of the whole configuration (.py).
        checkpoint_path: of mmengine's Runner; None leaves the weights as they were initialised.
        cameras: channels of the recipe's data; a detector without cameras takes none.
        options: what else the recipe says.
        sha256: expected of the checkpoint.

    Raises:
        CannotRunHere: mmdet3d is not installed.
        UsageError: the configuration is missing, broken or contradicts itself; its head, its test pipeline or its
            classes are not usable here; it has cameras and the recipe has none.
        ArtifactError: the checkpoint is missing, damaged or does not fit.
    """
    options = options or Mmdet3dOptions()
    config = read_config(config_path, options)
    names = class_names(config, config_path)
    inputs = Mmdet3dInputs.of(config, config_path, options)
    if inputs.images is not None and not cameras:
        raise UsageError(
            f"mmdet3d config {config_path} is a model with cameras, but the recipe's data.cameras is empty"
        )
    # Before the model is built: a wrong file is known at once.
    weights = None if checkpoint_path is None else read_weights(checkpoint_path, sha256)
    detector = build_detector_of(config, config_path, options.import_paths)
    reader = head_reader(detector)
    _check_classes(names, reader, weights, config_path)
    spec = _spec(detector, reader, inputs, (names, tuple(cameras)), options.bev_stride)
    if weights is not None:
        load_into(detector, weights)
    teacher = Mmdet3dDetector(detector, reader, inputs, spec)
    teacher.sha256 = weights.sha256 if weights is not None else None
    return teacher


def _check_classes(names: tuple[str, ...], reader: HeadReader, weights: WeightsFile | None, path: Path) -> None:
    if len(set(names)) != len(names) or len(names) != reader.facts.label_count:
        raise UsageError(
            f"mmdet3d config {path} names {len(names)} classes ({', '.join(names)}), its {reader.family} tells "
            f"{reader.facts.label_count} apart"
        )
    of_head = reader.facts.class_names
    if of_head is not None and of_head != names:
        raise UsageError(
            f"mmdet3d config {path} contradicts itself: its data set's classes are {', '.join(names)}, the tasks of "
            f"its head {', '.join(of_head)}"
        )
    trained = None if weights is None else classes_of(weights)
    if trained is not None and trained != names:
        raise UsageError(
            f"the checkpoint was trained with the classes {', '.join(trained)}, mmdet3d config {path} names "
            f"{', '.join(names)}: labels would change their meaning. Use the config that it was trained with"
        )


def _spec(
    detector: Any,
    reader: HeadReader,
    inputs: Mmdet3dInputs,
    names_and_cameras: tuple[tuple[str, ...], tuple[str, ...]],
    bev_stride: int | None,
) -> SensorSpec:
    range_m, voxel_m = _grid(detector, reader)
    stride = bev_stride or reader.facts.stride or _derived_stride(detector, reader, range_m, voxel_m)
    if isinstance(reader, AnchorHeadReader):
        _check_anchors(reader, range_m, voxel_m * stride)
    classes, cameras = names_and_cameras
    images = inputs.images
    drops = inputs.points.range_m
    camera_input: dict[str, Any] = {"cameras": ()}
    if images is not None:
        height_px, width_px = images.size_px
        camera_input = {
            "cameras": cameras, "image_height_px": height_px, "image_width_px": width_px, "image_scale": images.scale,
            "image_resize": "pillow_bicubic",
        }  # fmt: skip
    x0, y0, z0, x1, y1, z1 = range_m
    return SensorSpec(
        **camera_input,
        range_m=(x0, y0, z0, x1, y1, z1),
        bev_cell_m=voxel_m * stride,
        axis_order=reader.axis_order,
        drop_outside=drops is not None and _close(drops, range_m),
        classes=classes,
        top_k=reader.facts.max_boxes,
    )


def _grid(detector: Any, reader: HeadReader) -> tuple[tuple[float, ...], float]:
    """Range and side of a voxel, from the layer that voxelizes."""
    layer = getattr(detector.data_preprocessor, "voxel_layer", None) or getattr(detector, "pts_voxel_layer", None)
    if layer is None:
        raise UsageError(
            f"{type(detector).__name__} does not voxelize its points (data_preprocessor.voxel_layer), so the range of "
            "its BEV maps is not known"
        )
    range_m = tuple(float(edge) for edge in layer.point_cloud_range)
    x_m, y_m = (float(side) for side in list(layer.voxel_size)[:2])
    if not _close([x_m], [y_m]):
        raise UsageError(f"BEV cells must be squares, but voxels of the mmdet3d config are {x_m:g} x {y_m:g} m")
    for name, claimed, actual in (
        ("origin", reader.facts.origin_m, range_m[:2]),
        ("voxel size", reader.facts.voxel_m, (x_m, y_m)),
    ):
        if claimed is not None and not _close(claimed, actual):
            raise UsageError(
                f"the mmdet3d config contradicts itself: {name} of its {reader.family} is {list(claimed)} m, of its "
                f"voxels {list(actual)} m"
            )
    return range_m, x_m


def _check_anchors(reader: AnchorHeadReader, range_m: Sequence[float], cell_m: float) -> None:
    """Whether class scores lie where their cell is."""
    for anchors_m in reader.anchor_ranges_m():
        if any(abs(anchors_m[edge] - range_m[edge]) > cell_m for edge in (0, 1, 3, 4)):
            raise UsageError(
                f"anchors of the mmdet3d config span {list(anchors_m)} m, its voxels {list(range_m)} m, which is more "
                f"than a cell ({cell_m:g} m) apart: class scores would not be where their cell is"
            )


def _derived_stride(detector: Any, reader: HeadReader, range_m: Sequence[float], voxel_m: float) -> int:
    """Voxels along a cell of a head that does not say: from the shape of the features, without computing them."""
    unknown = UsageError(
        f"how many voxels a cell of this {reader.family}'s maps spans is not in the config: give teacher.bev_stride"
    )
    # Detectors with a camera branch put pts_ before the names.
    scatter, backbone, neck = (
        getattr(detector, f"pts_{name}", None) or getattr(detector, name, None)
        for name in ("middle_encoder", "backbone", "neck")
    )
    if backbone is None or not all(hasattr(scatter, name) for name in ("ny", "nx", "in_channels")):
        raise unknown  # no pillar scatter, whose canvas has a cell a pillar
    assert scatter is not None
    canvas = torch.empty(1, scatter.in_channels, scatter.ny, scatter.nx, device="meta")
    try:
        features = copy.deepcopy(backbone).to("meta").eval()(canvas)
        if neck is not None:
            features = copy.deepcopy(neck).to("meta").eval()(features)
    except (NotImplementedError, RuntimeError) as error:  # an operator without shapes of its own
        raise unknown from error
    finest = features[0] if isinstance(features, (list, tuple)) else features
    return round((range_m[3] - range_m[0]) / voxel_m / finest.shape[-1])


def _features(detector: Any, inputs: Mapping[str, Any], metas: Sequence[Mapping[str, Any]]) -> Any:
    """What the head is given, by the detector's own feature extraction."""
    from mmdet3d.models.detectors import MVXTwoStageDetector
    from mmdet3d.models.detectors.single_stage import SingleStage3DDetector

    if isinstance(detector, SingleStage3DDetector):
        return detector.extract_feat(inputs)
    features = detector.extract_feat(inputs, metas)
    return features[1] if isinstance(detector, MVXTwoStageDetector) else features


def _check_runs_on_cpu(model: nn.Module) -> None:
    for module in model.modules():
        if type(module).__module__.startswith("mmcv.ops.sparse_"):
            raise CannotRunHere(
                f"this detector has sparse 3-D convolutions of mmcv ({type(module).__name__}), which run on CUDA "
                "alone: use a GPU, or install spconv"
            )


def _close(values: Sequence[float], others: Sequence[float]) -> bool:
    return len(values) == len(others) and all(
        abs(a - b) <= _SAME * max(1.0, abs(a)) for a, b in zip(values, others, strict=True)
    )
