"""The synthetic dataset through nuscenes-devkit, as any nuScenes reader would open it."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CATEGORY_TO_CLASS
from bevkd_deploy.data.synthetic import write_dataset

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("nuscenes.nuscenes")
        from nuscenes.utils import data_classes, geometry_utils
    root: Path = tmp_path_factory.mktemp("devkit") / "world"
    write_dataset(root, profile="tiny", train_scenes=1, val_scenes=1, seed=2)
    nusc = module.NuScenes(version="v1.0-trainval", dataroot=str(root), verbose=False)
    return SimpleNamespace(nusc=nusc, data_classes=data_classes, geometry=geometry_utils, root=root)


def test_opens_and_walks_scenes(devkit: SimpleNamespace) -> None:
    nusc = devkit.nusc
    assert len(nusc.scene) == 2
    for scene in nusc.scene:
        token, seen = scene["first_sample_token"], 0
        while token:
            sample = nusc.get("sample", token)
            assert set(sample["data"]) == {*CAMERA_NAMES, "LIDAR_TOP"}
            assert len(sample["anns"]) > 20
            token, seen = sample["next"], seen + 1
        assert seen == scene["nbr_samples"]


def test_num_lidar_pts_equals_points_in_box(devkit: SimpleNamespace) -> None:
    nusc = devkit.nusc
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = devkit.data_classes.LidarPointCloud.from_file(path).points[:3].astype(np.float64)
        counts = [int(devkit.geometry.points_in_box(box, points).sum()) for box in boxes]
        assert counts == [nusc.get("sample_annotation", box.token)["num_lidar_pts"] for box in boxes]
        assert sum(counts) > 300


def test_velocity_fits_attribute_and_heading(devkit: SimpleNamespace) -> None:
    nusc = devkit.nusc
    checked = 0
    for record in nusc.sample_annotation:
        velocity = nusc.box_velocity(record["token"])
        if np.isnan(velocity).any() or not record["attribute_tokens"]:
            continue
        attribute = nusc.get("attribute", record["attribute_tokens"][0])["name"]
        speed = float(np.linalg.norm(velocity[:2]))
        if attribute in ("vehicle.parked", "vehicle.stopped", "pedestrian.standing", "cycle.without_rider"):
            assert speed == pytest.approx(0.0, abs=1e-6)
        if attribute in ("vehicle.moving", "pedestrian.moving"):
            w, _, _, z = record["rotation"]
            yaw = 2 * np.arctan2(z, w)
            along = velocity[0] * np.cos(yaw) + velocity[1] * np.sin(yaw)
            assert speed > 0.4
            assert along / speed > 0.95
            checked += 1
    assert checked > 10


def test_velocity_is_displacement_over_time(devkit: SimpleNamespace) -> None:
    nusc = devkit.nusc
    record = next(
        record
        for record in nusc.sample_annotation
        if record["prev"] and record["next"] and nusc.box_velocity(record["token"])[0] > 1.0
    )
    before, after = (nusc.get("sample_annotation", record[key]) for key in ("prev", "next"))
    moved = np.array(after["translation"]) - np.array(before["translation"])
    assert nusc.box_velocity(record["token"]) == pytest.approx(moved / 1.0)  # two keyframes at 2 Hz


def test_every_camera_gets_its_boxes_and_intrinsics(devkit: SimpleNamespace) -> None:
    nusc = devkit.nusc
    sample = nusc.sample[1]
    for name in CAMERA_NAMES:
        path, boxes, intrinsic = nusc.get_sample_data(sample["data"][name])
        assert Path(path).is_file()
        assert intrinsic[0, 0] == pytest.approx((809.2 if name == "CAM_BACK" else 1264) * 0.22, rel=0.01)
        for box in boxes:
            assert box.center[2] > 0 or abs(box.center[0]) < 15


def test_detection_ground_truth_can_be_assembled(devkit: SimpleNamespace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("nuscenes.eval.detection.utils")
    nusc = devkit.nusc
    for record in nusc.sample_annotation:
        assert utils.category_to_detection_name(record["category_name"]) == CATEGORY_TO_CLASS[record["category_name"]]
        assert len(record["attribute_tokens"]) <= 1
        width, length, height = record["size"]
        assert min(width, length, height) > 0
