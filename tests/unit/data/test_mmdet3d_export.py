"""Info files of our own: they give the samples that the tables give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bevkd_deploy.cli.main import app
from bevkd_deploy.contracts.classes import CAMERA_NAMES, CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.data.safe_pickle import load_pickle
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_sample
from bevkd_deploy.data.source import Split, open_split
from bevkd_deploy.data.synthetic import Profile, write_dataset

PROFILE = Profile("sweeping", (198, 352), 3, 180, 45.0, 42.0, 3)
SWEEPS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with sweeps and, in infos/, its info files as the command writes them."""
    root = write_dataset(
        tmp_path_factory.mktemp("export") / "world", profile=PROFILE, train_scenes=1, val_scenes=1, seed=4
    )
    done = CliRunner().invoke(app, ["data", "infos", str(root), "--out-dir", str(root / "infos")])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(root / "infos" / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")]
    return root


def both(root: Path, split: Split, **changes: object) -> tuple[list[Sample], list[Sample]]:
    common = {"root": str(root), "sweeps": SWEEPS, **changes}
    tables = DataConfig(source="nuscenes", **common)
    files = {f"{name}_infos": f"infos/nuscenes_infos_{name}.pkl" for name in ("train", "val")}
    return open_split(tables, root, split), open_split(
        DataConfig(source="mmdet3d_infos", **files, **common), root, split
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_are_those_of_the_tables(root: Path, split: Split) -> None:
    tables, infos = both(root, split)
    assert len(tables) == len(infos) == 3
    assert sum(len(sample.sweeps) for sample in tables) == 9 and sum(len(sample.boxes) for sample in tables) > 20
    for ours, theirs in zip(tables, infos, strict=True):
        assert (ours.token, ours.scene, ours.timestamp_s) == (theirs.token, theirs.scene, theirs.timestamp_s)
        assert ours.image_paths == theirs.image_paths and list(ours.image_paths) == list(theirs.image_paths)
        assert (ours.points_path, ours.attributes) == (theirs.points_path, theirs.attributes)
        assert ours.calibration.cameras == theirs.calibration.cameras == CAMERA_NAMES
        assert ours.calibration.image_sizes_px == theirs.calibration.image_sizes_px
        for name in ("labels", "num_points", "boxes", "lidar2ego", "ego2global"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        for name in ("cam2img", "lidar2cam"):
            np.testing.assert_array_equal(getattr(ours.calibration, name), getattr(theirs.calibration, name))
        assert [sweep.path for sweep in ours.sweeps] == [sweep.path for sweep in theirs.sweeps]
        for one, other in zip(ours.sweeps, theirs.sweeps, strict=True):
            assert one.time_lag_s == pytest.approx(other.time_lag_s, abs=1e-6)  # microseconds at 1.7e9 s in a double
            np.testing.assert_allclose(one.sweep2lidar, other.sweep2lidar, atol=1e-9)
        np.testing.assert_allclose(load_sample(ours, ()).points, load_sample(theirs, ()).points, atol=1e-5)
        # What no info file carries.
        assert ours.annotations is not None and ours.bike_racks is not None
        assert theirs.annotations is None and theirs.bike_racks is None


def test_cameras_and_sweeps_are_chosen_alike(root: Path) -> None:
    tables, infos = both(root, "val", cameras=("CAM_BACK", "CAM_FRONT_LEFT"), sweeps=2)
    for ours, theirs in zip(tables, infos, strict=True):
        assert ours.calibration.digest() == theirs.calibration.digest()
        assert len(ours.sweeps) == len(theirs.sweeps) <= 2


def test_files_hold_what_mmdet3d_reads(root: Path) -> None:
    content = load_pickle(root / "infos" / "nuscenes_infos_train.pkl")
    assert content["metainfo"]["info_version"] == "1.1"
    assert content["metainfo"]["categories"] == {name: number for number, name in enumerate(CLASS_NAMES)}
    info = content["data_list"][2]
    assert info["sample_idx"] == 2
    assert info["lidar_points"]["num_pts_feats"] == 5 and "/" not in info["lidar_points"]["lidar_path"]
    assert "/" not in info["images"]["CAM_BACK"]["img_path"]
    assert len(info["lidar_sweeps"]) == 8  # all turns of a scene this short
    assert {"sweeps", "samples"} == {
        sweep["lidar_points"]["lidar_path"].split("/")[0] for sweep in info["lidar_sweeps"]
    }
    instance = info["instances"][0]
    assert instance["bbox_label"] == instance["bbox_label_3d"]
    assert instance["bbox_3d_isvalid"] == (instance["num_lidar_pts"] + instance["num_radar_pts"] > 0)


def test_info_files_without_sweeps_are_refused_where_sweeps_are_wanted(root: Path) -> None:
    out = root / "bare"
    done = CliRunner().invoke(app, ["data", "infos", str(root), "--out-dir", str(out), "--sweeps", "0"])
    assert done.exit_code == 0, done.output
    files = {f"{name}_infos": f"bare/nuscenes_infos_{name}.pkl" for name in ("train", "val")}
    with pytest.raises(DataError, match=r"holds no lidar_sweeps, 5 are asked for"):
        open_split(DataConfig(source="mmdet3d_infos", root=str(root), sweeps=5, **files), root, "train")
    assert len(open_split(DataConfig(source="mmdet3d_infos", root=str(root), **files), root, "train")) == 3


def test_a_dataset_without_known_scenes_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "v1.0-trainval", tmp_path / "v1.0-trainval")
    (tmp_path / "splits.json").write_text('{"train": ["x"], "val": []}')
    done = CliRunner().invoke(app, ["data", "infos", str(tmp_path), "--out-dir", str(tmp_path)])
    assert isinstance(done.exception, DataError) and "no scenes of any split" in str(done.exception)
