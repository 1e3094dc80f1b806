"""Splits: which scenes of which source a recipe's data section means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.data.sensor_files import load_sample_images, load_sample_points
from bevkd_deploy.data.source import open_split
from bevkd_deploy.data.splits import official_scenes, official_splits

VERSION = "v1.0-trainval"


def config(**changes: object) -> DataConfig:
    return DataConfig(**{"source": "nuscenes", "root": "unused", "version": VERSION, **changes})


@pytest.fixture
def without_splits(tiny_world: Path, tmp_path: Path) -> Path:
    """The tables of the tiny world with scenes named as two of nuScenes' own, and no splits.json."""
    shutil.copytree(tiny_world / VERSION, tmp_path / VERSION)
    path = tmp_path / VERSION / "scene.json"
    scenes = sorted(json.loads(path.read_text()), key=lambda row: row["name"])
    for row, name in zip(scenes, ("scene-0061", "scene-0103"), strict=True):
        row["name"] = name
    path.write_text(json.dumps(scenes))
    return tmp_path


def test_a_datasets_own_splits_are_followed(tiny_world: Path) -> None:
    own = json.loads((tiny_world / "splits.json").read_text())
    train, val = open_split(config(), tiny_world, "train"), open_split(config(), tiny_world, "val")
    assert {sample.scene for sample in train} == set(own["train"])
    assert {sample.scene for sample in val} == set(own["val"])
    assert set(own["train"]).isdisjoint(own["val"])
    assert len(train) == len(val) == 4
    swapped = config(train_split="val", val_split="train")
    assert [s.token for s in open_split(swapped, tiny_world, "train")] == [s.token for s in val]


def test_the_recipes_cameras_are_read_in_its_order(tiny_world: Path) -> None:
    (first, *_) = open_split(config(cameras=("CAM_BACK", "CAM_FRONT")), tiny_world, "val")
    assert first.calibration.cameras == ("CAM_BACK", "CAM_FRONT")


def test_a_vehicle_with_one_kind_of_sensor(tiny_world: Path) -> None:
    both = open_split(config(), tiny_world, "val")
    camera = open_split(config(sensors="camera"), tiny_world, "val")
    lidar = open_split(config(sensors="lidar"), tiny_world, "val")
    assert [s.token for s in both] == [s.token for s in camera] == [s.token for s in lidar]
    assert all(s.points_path is None and not len(load_sample_points(s)) for s in camera)
    assert [s.image_paths for s in camera] == [s.image_paths for s in both]
    assert all(not s.image_paths and s.calibration.cameras == () for s in lidar)
    assert load_sample_images(lidar[0], ["CAM_FRONT"]) == [None]
    assert [s.points_path for s in lidar] == [s.points_path for s in both]


def test_an_unknown_split_names_the_known_ones(tiny_world: Path) -> None:
    with pytest.raises(DataError, match=r"splits\.json has no split 'test'; it has \['train', 'val'\]"):
        open_split(config(val_split="test"), tiny_world, "val")


def test_official_mini_splits(without_splits: Path) -> None:
    mini = config(train_split="mini_train", val_split="mini_val")
    assert {s.scene for s in open_split(mini, without_splits, "train")} == {"scene-0061"}
    assert {s.scene for s in open_split(mini, without_splits, "val")} == {"scene-0103"}


def test_official_splits_need_no_file_and_no_devkit(without_splits: Path) -> None:
    assert {s.scene for s in open_split(config(), without_splits, "train")} == {"scene-0061"}
    assert {s.scene for s in open_split(config(), without_splits, "val")} == {"scene-0103"}
    with pytest.raises(DataError, match=r"nuScenes has no split 'valid'; it has .*'mini_val'.*splits\.json"):
        open_split(config(val_split="valid"), without_splits, "val")


@pytest.mark.filterwarnings("ignore")
def test_official_splits_are_the_devkits() -> None:
    theirs = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    assert set(official_splits()) == {"train", "val", "test", "mini_train", "mini_val"}
    for name in official_splits():
        assert official_scenes(name) == sorted(theirs[name]), name


def test_a_split_without_samples_is_an_error(tiny_world: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_world / VERSION, tmp_path / VERSION)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["scene-9999"], "val": []}))
    with pytest.raises(DataError, match=r"split 'train' of .* holds no samples; its scenes: \['scene-9999'\]"):
        open_split(config(), tmp_path, "train")


def test_info_files_by_split(keyframe_root: Path, tmp_path: Path) -> None:
    infos = DataConfig(source="mmdet3d_infos", root="unused", train_infos="*.pkl", val_infos="other.pkl")
    assert [s.token for s in open_split(infos, keyframe_root, "train")] == ["ca9a282c9e77460f8360f564131a8af5"]
    with pytest.raises(DataError, match=r"other\.pkl"):
        open_split(infos, keyframe_root, "val")
