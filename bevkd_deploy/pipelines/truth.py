"""`bevkd data truth`: the ground truth of a split as a file that `bevkd evaluate` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_loader import load_recipe, resolve_data_root
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.source import open_split
from bevkd_deploy.evaluation.submission import write_submission
from bevkd_deploy.pipelines.accuracy import ground_truth


@dataclass(frozen=True)
class TruthFile:
    """What was written."""

    path: Path
    frames: int
    scenes: int
    boxes: int
    bike_racks: bool


def write_truth(source: Path, dest: Path, *, split: str, version: str | None = None) -> TruthFile:
    """Write annotations, bike racks and the scene of each frame.

    Args:
        source: folder of a dataset in the nuScenes layout, or a recipe, whose data section says what to read.
        dest: file to write.
        split: of a folder, any split that nuScenes or its splits.json names; of a recipe, train or val.
        version: table folder of a dataset folder, by default v1.0-trainval; a recipe has its own.

    Raises:
        UsageError: a recipe was named together with a version, or with a split that recipes do not have.
        DataError: the dataset is missing or damaged.
    """
    samples = _samples(source, split, version)
    truth = ground_truth(samples)
    scenes = {sample.token: sample.scene for sample in samples}
    write_submission(
        dest, truth.records, {"split": split, "source": source.name, "scenes": scenes}, bike_racks=truth.bike_racks
    )
    boxes = sum(map(len, truth.records.values()))
    return TruthFile(dest, len(samples), len(set(scenes.values())), boxes, truth.bike_racks is not None)


def _samples(source: Path, split: str, version: str | None) -> list[Sample]:
    if source.is_dir():
        data = DataConfig(source="nuscenes", root=str(source), version=version or "v1.0-trainval", val_split=split)
        return open_split(data, source, "val")
    if version is not None:
        raise UsageError("--table-version belongs to a dataset folder; a recipe says it in data.version")
    recipe = load_recipe(source).recipe
    if split == "train":
        return open_split(recipe.data, resolve_data_root(recipe), "train")
    if split == "val":
        return open_split(recipe.data, resolve_data_root(recipe), "val")
    raise UsageError(f"a recipe has the splits train and val, got {split!r}")
