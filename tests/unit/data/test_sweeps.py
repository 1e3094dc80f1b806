"""Earlier LiDAR turns: transforms, time lags and points equal nuscenes-devkit's multi-sweep reader."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.data.sensor_files import load_points, load_sample_points
from bevkd_deploy.data.source import open_split
from bevkd_deploy.data.synthetic import Profile, write_dataset
from bevkd_deploy.geometry.boxes import points_in_boxes

PROFILE = Profile("sweeping", (198, 352), 3, 180, 45.0, 42.0, 3)
SWEEPS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("sweeps") / "world", profile=PROFILE, train_scenes=1, val_scenes=0, seed=3
    )


@pytest.mark.filterwarnings("ignore")
def test_points_equal_the_devkit(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nuscenes = pytest.importorskip("nuscenes.nuscenes")
        cloud_class = pytest.importorskip("nuscenes.utils.data_classes").LidarPointCloud
    tables = nuscenes.NuScenes(version="v1.0-trainval", dataroot=str(root), verbose=False)
    sample = open_split(DataConfig(source="nuscenes", root=str(root), sweeps=SWEEPS), root, "train")[2]
    record = tables.get("sample", sample.token)
    cloud, lags = cloud_class.from_file_multisweep(tables, record, "LIDAR_TOP", "LIDAR_TOP", nsweeps=SWEEPS + 1)
    ours = load_sample_points(sample)
    keyframe = len(load_points(sample.points_path))
    theirs = np.concatenate([cloud.points.T, lags.T], axis=1)
    # The devkit drops the vehicle's own returns from the keyframe too; the synthetic LiDAR has none there.
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], atol=1e-4)
    np.testing.assert_allclose(ours[:, 4], theirs[:, 4], atol=1e-6)
    assert (ours[:keyframe, 4] == 0).all()
    assert len(np.unique(ours[:, 4])) == SWEEPS + 1


def test_the_first_keyframe_of_a_scene_has_none(root: Path) -> None:
    samples = open_split(DataConfig(source="nuscenes", root=str(root), sweeps=SWEEPS), root, "train")
    assert [len(sample.sweeps) for sample in samples] == [0, 4, 5]
    assert [round(sweep.time_lag_s, 3) for sweep in samples[1].sweeps] == [0.125, 0.25, 0.375, 0.5]


def test_points_of_parked_objects_stay_in_their_boxes(root: Path) -> None:
    """Without ego-motion compensation they would be smeared over metres."""
    sample = open_split(DataConfig(source="nuscenes", root=str(root), sweeps=SWEEPS), root, "train")[2]
    assert max(np.linalg.norm(sweep.sweep2lidar[:2, 3]) for sweep in sample.sweeps) > 1.0
    parked = sample.boxes[(np.hypot(sample.boxes[:, 7], sample.boxes[:, 8]) < 0.1) & (sample.num_points > 20)]
    assert len(parked) > 0
    points = load_sample_points(sample)
    keyframe = points_in_boxes(points[points[:, 4] == 0], parked).sum(axis=0)
    older = points_in_boxes(points[points[:, 4] > 0], parked).sum(axis=0)
    # Five older turns see about five times the points of one, where nothing moves.
    assert older.sum() > 3 * keyframe.sum()
