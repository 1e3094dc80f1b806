"""Frames as tensors: the shipped preprocessing, one augmentation per frame, targets, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import AugmentationConfig
from bevkd_deploy.data.augment import augment_points, draw_bev_aug
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_sample
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.geometry.boxes import augment_boxes
from bevkd_deploy.runtime.preprocess import Preprocessor

Frame = dict[str, Any]


class FrameDataset(Dataset[Frame]):
    """Prepares samples for one or more networks at once.

    Each entry of `specs` (say "student" and "teacher") gets its own six graph inputs, all made from the same
    augmentation sample; networks with the same input geometry share the very same arrays.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        specs: dict[str, GraphSpec],
        *,
        target_of: str,
        min_radius_cells: int,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        cache_sensors: bool = False,
    ) -> None:
        self.samples = list(samples)
        self.specs = specs
        self.target_of = target_of
        self.min_radius_cells = min_radius_cells
        self.augmentation = augmentation
        self.seed = seed
        self._preprocessors = {name: Preprocessor(spec) for name, spec in specs.items()}
        self._cache: dict[int, dict[str, Any]] | None = {} if cache_sensors else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Frame:
        """Frame number `position % len`, augmented by the draw number `position`.

        Samplers count on through the epochs, so a draw depends on seed, epoch and frame alone: not on workers, and
        not on whether the run was interrupted.
        """
        sample = self.samples[position % len(self)]
        bev_aug = None
        if self.augmentation is not None and self.augmentation != AugmentationConfig():
            bev_aug = draw_bev_aug(self.augmentation, np.random.default_rng([self.seed, position]))
        sensors = self._sensors(position % len(self))
        points = sensors["points"] if bev_aug is None else augment_points(sensors["points"], bev_aug)
        frame: Frame = {"token": sample.token, "dropped": list(sensors["dropped"]), "inputs": {}}
        made: dict[str, dict[str, Tensor]] = {}
        for name, spec in self.specs.items():
            key = _input_key(spec)
            if key not in made:
                missing = [camera for camera in spec.cameras if camera not in sensors["cameras"]]
                made[key] = self._inputs(name, sample, sensors["images"][key], points, bev_aug, missing)
            frame["inputs"][name] = made[key]
        frame["targets"] = self._targets(sample, bev_aug)
        return frame

    def _sensors(self, index: int) -> dict[str, Any]:
        """Resized images per input geometry, points, the cameras that were read and what was dropped."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self.samples[index]
        cameras = list(dict.fromkeys(camera for spec in self.specs.values() for camera in spec.cameras))
        read = load_sample(sample, cameras)
        raw = dict(zip(cameras, read.images, strict=True))
        images: dict[str, NDArray[np.uint8]] = {}
        for name, spec in self.specs.items():
            key = _input_key(spec)
            if key not in images:
                images[key] = self._preprocessors[name].images([raw[camera] for camera in spec.cameras])
        there = {camera for camera, image in raw.items() if image is not None}
        sensors = {"images": images, "points": read.points, "cameras": there, "dropped": read.dropped}
        if self._cache is not None:
            self._cache[index] = sensors
        return sensors

    def _inputs(
        self,
        name: str,
        sample: Sample,
        images: NDArray[np.uint8],
        points: NDArray[np.float32],
        bev_aug: NDArray[np.float64] | None,
        missing: Sequence[str],
    ) -> dict[str, Tensor]:
        preprocessor = self._preprocessors[name]
        pillars = preprocessor.pillars(points)
        lut_pixel, lut_depth = preprocessor.tables(sample.calibration, bev_aug, missing=missing)
        arrays = {
            "images": images,
            "pillars": pillars.pillars,
            "pillar_count": pillars.pillar_count,
            "pillar_index": pillars.pillar_index,
            "lut_pixel": lut_pixel,
            "lut_depth": lut_depth,
        }
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def _targets(self, sample: Sample, bev_aug: NDArray[np.float64] | None) -> dict[str, Tensor]:
        # Objects no sensor has touched cannot be learned; nuScenes' evaluation leaves them out too.
        seen = sample.num_points > 0
        boxes = sample.boxes[seen] if bev_aug is None else augment_boxes(sample.boxes[seen], bev_aug)
        targets = center_targets(boxes, sample.labels[seen], self.specs[self.target_of], self.min_radius_cells)
        return {key: torch.from_numpy(value) for key, value in targets.items()}


class EpochSampler(Sampler[int]):
    """Positions of one epoch: a seeded permutation, counted on through the epochs for the augmentation's sake."""

    def __init__(self, length: int, seed: int, repeat: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.repeat = repeat
        self.epoch = 0

    # Not `set_epoch`: accelerate's loaders call a method of that name with a count of their own, which starts at 0
    # again when a run is resumed.
    def begin(self, epoch: int) -> None:
        """Choose the epoch whose positions come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length * self.repeat

    def __iter__(self) -> Iterator[int]:
        for turn in range(self.epoch * self.repeat, (self.epoch + 1) * self.repeat):
            order = np.random.default_rng([self.seed, turn]).permutation(self.length)
            yield from (int(turn * self.length + index) for index in order)


def collate(frames: list[Frame]) -> Frame:
    """Stack frames into a batch: inputs per network, targets, tokens, and the sensors that frames go without."""
    names = frames[0]["inputs"]
    shared: dict[int, dict[str, Tensor]] = {}
    batch: Frame = {"token": [frame["token"] for frame in frames], "inputs": {}}
    batch["dropped"] = [event for frame in frames for event in frame["dropped"]]
    for name in names:
        identity = id(names[name])
        if identity not in shared:
            parts = [frame["inputs"][name] for frame in frames]
            shared[identity] = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
        batch["inputs"][name] = shared[identity]
    batch["targets"] = {key: torch.stack([frame["targets"][key] for frame in frames]) for key in frames[0]["targets"]}
    return batch


def _input_key(spec: GraphSpec) -> str:
    """What decides a network's inputs: everything in the spec but the size of its output."""
    return spec.model_dump_json(exclude={"top_k"})
