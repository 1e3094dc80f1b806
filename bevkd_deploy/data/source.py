"""From a recipe's data section to samples: the only place that knows all sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import read_json
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.data.index_cache import Listener
from bevkd_deploy.data.mmdet3d_infos import read_infos
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.splits import official_scenes, official_splits

Split = Literal["train", "val"]


def open_split(data: DataConfig, root: Path, split: Split, listener: Listener | None = None) -> list[Sample]:
    """Samples of a split, in a fixed order.

    Args:
        data: the recipe's data section.
        root: dataset folder, with variables expanded.
        split: which of the recipe's two splits.
        listener: told how far the reading of big tables is.

    Raises:
        DataError: the dataset is missing or damaged, or the split holds no samples.
    """
    return [_with_sensors(sample, data.sensors) for sample in _read_split(data, root, split, listener)]


def _with_sensors(sample: Sample, sensors: Literal["fusion", "camera", "lidar"]) -> Sample:
    """The same frame as a vehicle without the other sensors has it."""
    if sensors == "camera":
        cameras = tuple(event for event in sample.dropped if event.kind == "camera")
        return replace(sample, points_path=None, sweeps=(), dropped=cameras)
    if sensors == "lidar":
        turns = tuple(event for event in sample.dropped if event.kind != "camera")
        return replace(sample, image_paths={}, calibration=sample.calibration.select(()), dropped=turns)
    return sample


def _read_split(data: DataConfig, root: Path, split: Split, listener: Listener | None) -> list[Sample]:
    if data.source == "mmdet3d_infos":
        infos = data.train_infos if split == "train" else data.val_infos
        assert infos is not None  # the recipe schema demands both
        return read_infos(root, infos, data.cameras, data.sweeps, data.on_error)
    tables = NuScenesTables(root, data.version, listener)
    name = data.train_split if split == "train" else data.val_split
    scenes = split_scenes(root, name)
    samples = tables.samples(scenes & set(tables.scene_names()), data.cameras, data.sweeps, data.on_error)
    if not samples:
        raise DataError(f"split {name!r} of {root} ({data.version}) holds no samples; its scenes: {sorted(scenes)[:5]}")
    return samples


def split_scenes(root: Path, name: str) -> set[str]:
    """Scene names of a split: the dataset's own splits.json, else the official ones."""
    own = root / "splits.json"
    if own.is_file():
        splits = read_json(own, "split file")
        if name not in splits:
            raise DataError(f"{own} has no split {name!r}; it has {sorted(splits)}")
        return set(splits[name])
    if name not in official_splits():
        raise DataError(
            f"nuScenes has no split {name!r}; it has {list(official_splits())}. For splits of your own write {own} as "
            "{split: [scene names]}"
        )
    return set(official_scenes(name))
