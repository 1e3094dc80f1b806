"""Info files, points and boxes as mmdet3d itself makes them from the synthetic world, against ours."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.data.mmdet3d_export import write_infos
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.safe_pickle import load_pickle
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_points, load_sample
from bevkd_deploy.data.source import Split, open_split, split_scenes

SWEEPS = 5
SPLITS: tuple[Split, ...] = ("train", "val")


def from_tables(root: Path, split: Split, sweeps: int = SWEEPS) -> list[Sample]:
    return open_split(DataConfig(source="nuscenes", root=str(root), sweeps=sweeps), root, split)


def from_infos(root: Path, split: Split) -> list[Sample]:
    files = {f"{name}_infos": f"nuscenes_infos_{name}.pkl" for name in SPLITS}
    return open_split(DataConfig(source="mmdet3d_infos", root=str(root), sweeps=SWEEPS, **files), root, split)


@pytest.mark.parametrize("split", SPLITS)
def test_the_converters_infos_give_the_samples_of_the_tables(converted: Path, split: Split) -> None:
    tables, infos = from_tables(converted, split), from_infos(converted, split)
    assert len(tables) == len(infos) == 3
    assert sum(len(sample.boxes) for sample in tables) > 20
    for ours, theirs in zip(tables, infos, strict=True):
        assert (ours.token, ours.timestamp_s) == (theirs.token, theirs.timestamp_s)
        assert ours.image_paths == theirs.image_paths
        assert ours.points_path == theirs.points_path
        assert ours.calibration.cameras == theirs.calibration.cameras
        assert ours.calibration.image_sizes_px == theirs.calibration.image_sizes_px
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.num_points, theirs.num_points)
        np.testing.assert_allclose(ours.boxes[:, :6], theirs.boxes[:, :6], atol=1e-6)
        np.testing.assert_allclose(ours.boxes[:, 7:], theirs.boxes[:, 7:], atol=1e-6)
        # Theirs is the yaw of the whole rotation, ours the heading on the ground: equal to second order in the tilt.
        turn = np.angle(np.exp(1j * (ours.boxes[:, 6] - theirs.boxes[:, 6])))
        assert np.abs(turn).max() < 2e-3
        np.testing.assert_allclose(ours.calibration.cam2img, theirs.calibration.cam2img, rtol=1e-12)
        np.testing.assert_allclose(ours.calibration.lidar2cam, theirs.calibration.lidar2cam, atol=1e-5)  # float32
        np.testing.assert_allclose(ours.lidar2ego, theirs.lidar2ego, atol=1e-6)
        np.testing.assert_allclose(ours.ego2global, theirs.ego2global, rtol=1e-6, atol=1e-6)
        assert [sweep.path for sweep in ours.sweeps] == [sweep.path for sweep in theirs.sweeps]
        for one, other in zip(ours.sweeps, theirs.sweeps, strict=True):
            assert one.time_lag_s == pytest.approx(other.time_lag_s, abs=1e-6)
            np.testing.assert_allclose(one.sweep2lidar, other.sweep2lidar, atol=1e-5)


def test_our_unpickler_reads_what_mmdet3d_wrote(converted: Path) -> None:
    from mmengine import load

    path = converted / "nuscenes_infos_train.pkl"
    assert_alike(load_pickle(path), load(str(path)))


def test_our_infos_hold_what_the_converters_hold(converted: Path, tmp_path: Path) -> None:
    """Field by field; the converter's boxes of other categories (label -1) and 2-D instances are not in ours."""
    tables = NuScenesTables(converted, "v1.0-trainval")
    write_infos(tables, "v1.0-trainval", split_scenes(converted, "train"), tmp_path / "train.pkl")
    ours = load_pickle(tmp_path / "train.pkl")
    theirs = load_pickle(converted / "nuscenes_infos_train.pkl")
    for name in ("dataset", "version", "info_version"):
        assert ours["metainfo"][name] == theirs["metainfo"][name]
    assert ours["metainfo"]["categories"].items() <= theirs["metainfo"]["categories"].items()
    for one, other in zip(ours["data_list"], theirs["data_list"], strict=True):
        other["instances"] = [instance for instance in other["instances"] if instance["bbox_label_3d"] >= 0]
        del other["cam_instances"]
        for sweep in other.get("lidar_sweeps", ()):
            sweep["lidar_points"]["lidar_path"] = sweep["lidar_points"]["lidar_path"].removeprefix("data/nuscenes/")
        if not one["lidar_sweeps"]:  # theirs leaves out an empty list
            other["lidar_sweeps"] = []
        assert_alike(other, one, tolerance=2e-5, subset=True)


def assert_alike(expected: Any, found: Any, tolerance: float = 0.0, subset: bool = False, at: str = "") -> None:
    """Equal content; with `subset`, dicts of `found` may hold more keys."""
    if isinstance(expected, dict):
        if subset:  # theirs has None for what it does not know
            expected = {key: value for key, value in expected.items() if value is not None}
        assert set(expected) <= set(found) if subset else set(expected) == set(found), at
        for key, value in expected.items():
            assert_alike(value, found[key], tolerance, subset, f"{at}.{key}")
    elif isinstance(expected, (list, tuple, np.ndarray)) and at.endswith("bbox_3d"):
        difference = np.array(expected) - np.array(found)
        difference[6] = np.angle(np.exp(1j * difference[6])) / 100  # the yaw's tilt, see above
        assert np.abs(difference).max() <= max(tolerance, 1e-9), at
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found), at
        for number, pair in enumerate(zip(expected, found, strict=True)):
            assert_alike(*pair, tolerance, subset, f"{at}[{number}]")
    elif isinstance(expected, (float, int, np.number, np.bool_, np.ndarray)) and not isinstance(expected, bool):
        np.testing.assert_allclose(expected, found, rtol=1e-6, atol=tolerance, err_msg=at)
    else:
        assert expected == found, at


def dataset_of(root: Path, file: str, **options: Any) -> Any:
    from mmdet3d.registry import DATASETS

    prefixes = {"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", "img": ""}
    return DATASETS.build(
        {
            "type": "NuScenesDataset",
            "data_root": str(root),
            "ann_file": file,
            "data_prefix": prefixes,
            "pipeline": [],
            "modality": {"use_camera": False, "use_lidar": True},
            "filter_empty_gt": False,
            **options,
        }
    )


@pytest.mark.parametrize("written_by", ["mmdet3d", "bevkd"])
def test_boxes_of_its_dataset_are_ours_moved_down(converted: Path, written_by: str) -> None:
    file = "nuscenes_infos_train.pkl"
    if written_by == "bevkd":
        file = "own_train.pkl"
        tables = NuScenesTables(converted, "v1.0-trainval")
        write_infos(tables, "v1.0-trainval", split_scenes(converted, "train"), converted / file)
    dataset = dataset_of(converted, file, use_valid_flag=True)
    compared = 0
    for number, sample in enumerate(from_tables(converted, "train")):
        info = dataset.get_data_info(number)
        assert info["token"] == sample.token
        theirs = info["ann_info"]["gt_bboxes_3d"]
        seen = sample.num_points > 0
        ours = sample.boxes[seen].copy()
        ours[:, 2] -= ours[:, 5] / 2  # mmdet3d's boxes stand on the ground: bottom centre
        ours[:, 7:] = np.nan_to_num(ours[:, 7:])
        found = theirs.tensor.numpy().astype(np.float64)
        turn = np.angle(np.exp(1j * (ours[:, 6] - found[:, 6])))
        assert np.abs(turn).max() < 2e-3
        np.testing.assert_allclose(found[:, [0, 1, 2, 3, 4, 5, 7, 8]], ours[:, [0, 1, 2, 3, 4, 5, 7, 8]], atol=1e-4)
        np.testing.assert_array_equal(info["ann_info"]["gt_labels_3d"], sample.labels[seen])
        compared += len(found)
    assert compared > 20


def points_of_mmdet3d(dataset: Any, number: int, *, test_mode: bool, sweeps: int = SWEEPS) -> np.ndarray[Any, Any]:
    from mmdet3d.registry import TRANSFORMS

    results = dataset.get_data_info(number)
    for step in (
        {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
        {
            "type": "LoadPointsFromMultiSweeps",
            "sweeps_num": sweeps,
            "load_dim": 5,
            "use_dim": 5,
            "pad_empty_sweeps": False,
            "remove_close": True,
            "test_mode": test_mode,
        },
    ):
        results = TRANSFORMS.build(step).transform(results)
    return np.asarray(results["points"].tensor.numpy())


def as_mmdet3d_moves(sample: Sample) -> np.ndarray[Any, Any]:
    """Our points, with sweeps moved by mmdet3d 1.4's formula.

    It subtracts the translation of lidar2sensor, -R^T t, where the motion's own translation t belongs: off by
    (R^T - 1) t, which is nothing on a straight road and centimetres in a bend.
    """
    clouds = [load_points(sample.points_path)]  # type: ignore[arg-type]
    for sweep in sample.sweeps:
        points = load_points(sweep.path)
        points = points[~(np.abs(points[:, :2]) < 1.0).all(axis=1)]
        rotation, translation = sweep.sweep2lidar[:3, :3], sweep.sweep2lidar[:3, 3]
        points[:, :3] = points[:, :3] @ rotation.T + rotation.T @ translation
        points[:, 4] = sweep.time_lag_s
        clouds.append(points)
    return np.concatenate(clouds)


def ordered(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows in an order that rounding does not change: by time lag, then intensity, then position."""
    keys = np.round(points.astype(np.float64), 3)
    return points[np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0], points[:, 3], np.round(points[:, 4], 4)))]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_points_of_several_turns_are_the_same_set(converted: Path, mmdet3d: ModuleType, number: int) -> None:
    dataset = dataset_of(converted, "nuscenes_infos_train.pkl", test_mode=True)
    sample = from_tables(converted, "train")[number]
    theirs = points_of_mmdet3d(dataset, number, test_mode=True)
    ours = load_sample(sample, ()).points
    assert theirs.shape == ours.shape and len(sample.sweeps) == (0, 4, 5)[number]
    # Both keep the order of the files, so that rows can be compared where sorting by rounded values could not.
    np.testing.assert_allclose(theirs[:, 3], ours[:, 3])
    np.testing.assert_allclose(theirs[:, 4], ours[:, 4], atol=1e-5)
    np.testing.assert_allclose(theirs[:, :3], as_mmdet3d_moves(sample)[:, :3], atol=1e-4)
    error_m = max((np.linalg.norm((s.sweep2lidar[:3, :3].T - np.eye(3)) @ s.sweep2lidar[:3, 3]) for s in sample.sweeps),
                  default=0.0)  # fmt: skip
    assert np.abs(theirs[:, :3] - ours[:, :3]).max() <= error_m + 1e-4
    np.testing.assert_allclose(ordered(theirs)[:, 3:], ordered(ours)[:, 3:], atol=1e-5)


def test_in_training_mmdet3d_draws_sweeps_and_we_take_the_newest(converted: Path) -> None:
    """Where an info has more sweeps than are asked for; ours are those of its test mode, at any time."""
    dataset = dataset_of(converted, "nuscenes_infos_train.pkl", test_mode=True)
    sample = from_tables(converted, "train", sweeps=2)[2]
    ours = load_sample(sample, ()).points
    np.testing.assert_allclose(
        np.unique(points_of_mmdet3d(dataset, 2, test_mode=True, sweeps=2)[:, 4]), np.unique(ours[:, 4]), atol=1e-5
    )
    np.random.seed(1)
    drawn = points_of_mmdet3d(dataset, 2, test_mode=False, sweeps=2)
    assert len(np.unique(drawn[:, 4])) == 3 and not np.allclose(np.unique(drawn[:, 4]), np.unique(ours[:, 4]))
