"""Frames as tensors: the shipped preprocessing, one augmentation per frame, targets, batches."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_training import AugmentationConfig
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.augment import FrameAug, augment_points, draw_frame_aug
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_sample
from bevkd_deploy.data.sensor_inputs import SensorPreprocessor
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.geometry.boxes import augment_boxes
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.runtime.preprocess import ImageAug, Preprocessor

Frame = dict[str, Any]


class FrameDataset(Dataset[Frame]):
    """Prepares samples for one or more networks at once.

    Each entry of `specs` (say "student" and "teacher") gets its own inputs, the six of a graph or the sensors as they
    are, all made from the same augmentation sample; networks with the same input geometry share the very same arrays.
    `paster` adds objects to the points and the targets. A network whose output is known already can be left out
    (`leave_out`).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        specs: Mapping[str, GraphSpec | SensorSpec],
        *,
        target_of: str,
        min_radius_cells: int,
        augmentation: AugmentationConfig | None = None,
        paster: Paster | None = None,
        seed: int = 0,
        cache_sensors: bool = False,
    ) -> None:
        self.samples = list(samples)
        self.specs = specs
        self.target_of = target_of
        self._target_spec = _graph_spec(specs[target_of])
        self.min_radius_cells = min_radius_cells
        self.augmentation = augmentation or AugmentationConfig()
        self.paster = paster
        self.seed = seed
        self._cameras = list(dict.fromkeys(camera for spec in specs.values() for camera in spec.cameras))
        self._preprocessors = {name: preprocessor_for(spec) for name, spec in specs.items()}
        self._cache: dict[int, dict[str, Any]] | None = {} if cache_sensors else None
        self._known: dict[str, Container[int]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def share_sensors(self, other: FrameDataset) -> None:
        """Keep what is read in one memory with another data set of the same frames; both have `cache_sensors`.

        Raises:
            DataError: the frames are others, or one of both keeps nothing.
        """
        if self._cache is None or other._cache is None:
            raise DataError("share_sensors needs two data sets that keep what they read: set train.cache_sensors: true")
        same = [sample.token for sample in self.samples] == [sample.token for sample in other.samples]
        if not same or self._cameras != other._cameras or self._kept_images() != other._kept_images():
            raise DataError("share_sensors needs two data sets of the same frames, cameras and kept images")
        self._cache = other._cache

    def _kept_images(self) -> frozenset[str]:
        """Input geometries that kept images are resized to; none where the raw images are kept."""
        if not self.augmentation.views_are_off:
            return frozenset()
        return frozenset(map(input_key, self.specs.values()))

    def __getitem__(self, position: int) -> Frame:
        """Frame number `position % len`, augmented by the draw number `position`.

        Samplers count on through the epochs, so a draw depends on seed, epoch and frame alone: not on workers, and
        not on whether the run was interrupted.
        """
        content = self.content_of(position)
        names = [name for name in self.specs if content not in self._known.get(name, ())]
        frame, boxes, labels = self._make(position, names)
        targets = center_targets(boxes, labels, self._target_spec, self.min_radius_cells)
        frame["targets"] = {key: torch.from_numpy(value) for key, value in targets.items()}
        return frame

    @property
    def is_random(self) -> bool:
        """Whether a frame is another one each time that it comes."""
        return not (self.augmentation.bev_is_off and self.augmentation.views_are_off and self.paster is None)

    def content_of(self, position: int) -> int:
        """A number that two positions share only if their frames are the same, augmentation included."""
        return position if self.is_random else position % len(self)

    def leave_out(self, name: str, known: Container[int]) -> None:
        """Make no inputs for a network where its output is known already.

        Args:
            name: of the network, not the one that is trained.
            known: holds the `content_of` of every frame that the network need not see.
        """
        self._known[name] = known

    def inputs_of(self, position: int, name: str) -> dict[str, Tensor]:
        """The inputs of one network at one position, left out or not."""
        inputs: dict[str, Tensor] = self._make(position, [name])[0]["inputs"][name]
        return inputs

    def _make(self, position: int, names: Collection[str]) -> tuple[Frame, NDArray[np.float64], NDArray[np.int64]]:
        """A frame without targets, with the inputs of some networks; boxes and labels to learn."""
        sample = self.samples[position % len(self)]
        sensors = self._sensors(position % len(self), names)
        augmentation = self._draw(sample, position)
        points, boxes, labels = self._objects(sample, sensors["points"], position)
        if augmentation.bev_aug is not None:
            points, boxes = augment_points(points, augmentation.bev_aug), augment_boxes(boxes, augmentation.bev_aug)
        frame: Frame = {"token": sample.token, "position": position, "dropped": list(sensors["dropped"]), "inputs": {}}
        made: dict[str, dict[str, Tensor]] = {}
        for name in names:
            spec = self.specs[name]
            key = input_key(spec)
            if key not in made:
                missing = [camera for camera in spec.cameras if camera not in sensors["cameras"]]
                img_aug = image_warps(self._preprocessors[name], sample.calibration, augmentation)
                images = self._images(name, sensors["images"], img_aug)
                arrays = self._preprocessors[name].inputs(
                    images, points, sample.calibration, augmentation.bev_aug, img_aug, missing
                )
                made[key] = {input_name: torch.from_numpy(array) for input_name, array in arrays.items()}
            frame["inputs"][name] = made[key]
        return frame, boxes, labels

    def _draw(self, sample: Sample, position: int) -> FrameAug:
        spec = self._target_spec
        aspect = spec.image_height_px / spec.image_width_px
        return draw_frame_aug(self.augmentation, sample.calibration, self._cameras, aspect, [self.seed, position])

    def _objects(
        self, sample: Sample, points: NDArray[np.float32], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
        """Points, and the boxes and labels to learn, with what is pasted."""
        # Objects no sensor has touched cannot be learned; nuScenes' evaluation leaves them out too.
        seen = sample.num_points > 0
        boxes, labels = sample.boxes[seen], sample.labels[seen]
        # Pasted into a frame without its LiDAR, objects would be all that is there.
        if self.paster is None or position >= self.paster.until_position or not len(points):
            return points, boxes, labels
        rng = np.random.default_rng([self.seed, position, 2])
        points, more, more_labels = self.paster(points, sample.boxes, sample.labels, rng)
        return points, np.concatenate([boxes, more]), np.concatenate([labels, more_labels])

    def _sensors(self, index: int, names: Collection[str]) -> dict[str, Any]:
        """What was read: images (resized per input geometry, or raw per camera where views are drawn) and points."""
        views = not self.augmentation.views_are_off
        wanted = {} if views else {input_key(self.specs[name]): name for name in names}
        if self._cache is not None and index in self._cache:
            cached = self._cache[index]
            if wanted.keys() <= cached["images"].keys():
                return cached
            # Kept while a network was left out that is asked for now: a damaged file of its cached outputs, say.
            wanted = {input_key(spec): name for name, spec in self.specs.items()}
        sample = self.samples[index]
        read = load_sample(sample, self._cameras)
        raw = dict(zip(self._cameras, read.images, strict=True))
        images: dict[str, Any] = raw if views else {}
        for key, name in wanted.items():
            images[key] = self._preprocessors[name].images([raw[camera] for camera in self.specs[name].cameras])
        there = {camera for camera, image in raw.items() if image is not None}
        sensors = {"images": images, "points": read.points, "cameras": there, "dropped": read.dropped}
        if self._cache is not None:
            self._cache[index] = sensors
        return sensors

    def _images(self, name: str, images: dict[str, Any], img_aug: ImageAug | None) -> NDArray[np.uint8]:
        """The images of one network: resized already, or warped now."""
        spec = self.specs[name]
        if img_aug is None:
            resized: NDArray[np.uint8] = images[input_key(spec)]
            return resized
        return self._preprocessors[name].images([images[camera] for camera in spec.cameras], img_aug)


def preprocessor_for(spec: GraphSpec | SensorSpec) -> Preprocessor | SensorPreprocessor:
    """What makes the inputs of a network."""
    return SensorPreprocessor(spec) if isinstance(spec, SensorSpec) else Preprocessor(spec)


def image_warps(
    preprocessor: Preprocessor | SensorPreprocessor, calibration: Calibration, augmentation: FrameAug
) -> dict[str, NDArray[np.float64]] | None:
    """Per camera, 4x4 from a network's pixels (times depth) to its augmented ones; None where views are as deployed."""
    if isinstance(preprocessor, SensorPreprocessor):
        return augmentation.warps(preprocessor.view2network(calibration))
    return augmentation.img_aug(preprocessor.spec)


def batched(frames: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The inputs of one network for several frames, with a batch axis; shorter point clouds end in rows of zeros."""
    batch = {}
    for key in frames[0]:
        parts = [frame[key] for frame in frames]
        if key == "points":
            batch[key] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        else:
            batch[key] = torch.stack(parts)
    return batch


def collate(frames: list[Frame]) -> Frame:
    """Stack frames into a batch: inputs per network, targets, tokens, positions, and sensors that frames go without.

    A network that is left out of one frame is left out of the batch.
    """
    names = [name for name in frames[0]["inputs"] if all(name in frame["inputs"] for frame in frames)]
    shared: dict[int, dict[str, Tensor]] = {}
    batch: Frame = {key: [frame[key] for frame in frames] for key in ("token", "position")}
    batch["inputs"] = {}
    batch["dropped"] = [event for frame in frames for event in frame["dropped"]]
    for name in names:
        identity = id(frames[0]["inputs"][name])
        if identity not in shared:
            shared[identity] = batched([frame["inputs"][name] for frame in frames])
        batch["inputs"][name] = shared[identity]
    batch["targets"] = {key: torch.stack([frame["targets"][key] for frame in frames]) for key in frames[0]["targets"]}
    return batch


def _graph_spec(spec: GraphSpec | SensorSpec) -> GraphSpec:
    """That of the network whose targets are made, which is one of the student's family."""
    if isinstance(spec, SensorSpec):
        raise DataError("targets are made for a network of the student's family")
    return spec


def input_key(spec: GraphSpec | SensorSpec) -> str:
    """What decides a network's inputs: everything in the spec but the size of its output."""
    return spec.model_dump_json(exclude={"top_k"})
