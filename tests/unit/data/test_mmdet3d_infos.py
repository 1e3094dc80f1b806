"""mmdet3d info files: a real keyframe, and small files made by hand."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.mmdet3d_infos import read_infos
from bevkd_deploy.data.safe_pickle import load_pickle
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_image, load_points
from bevkd_deploy.geometry.boxes import points_in_boxes
from bevkd_deploy.geometry.frames import project

#: Where each camera of the nuScenes car looks, degrees counter-clockwise from straight ahead (nuscenes.org).
LOOKS_AT_DEG = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -55,
    "CAM_FRONT_LEFT": 55,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 110,
    "CAM_BACK_RIGHT": -110,
}


@pytest.fixture(scope="module")
def keyframe(keyframe_root: Path) -> Sample:
    (sample,) = read_infos(keyframe_root, "*.pkl", CAMERA_NAMES)
    return sample


def test_the_real_keyframe_has_its_boxes_and_images(keyframe: Sample) -> None:
    assert keyframe.token == "ca9a282c9e77460f8360f564131a8af5"
    assert keyframe.scene == "n015-2018-07-24-11-22-45+0800"
    assert keyframe.timestamp_s == pytest.approx(1532402927.647951)
    assert keyframe.boxes.shape == (68, 9)
    assert keyframe.labels.shape == keyframe.num_points.shape == (68,)
    assert len(keyframe.attributes) == 68
    assert keyframe.calibration.image_sizes_px == ((900, 1600),) * 6
    for camera, path in keyframe.image_paths.items():
        assert load_image(path, (900, 1600)).shape == (900, 1600, 3), camera
    assert load_points(keyframe.points_path).shape == (34688, 5)


def test_points_of_the_real_sweep_lie_in_the_camera_that_looks_at_them(keyframe: Sample) -> None:
    points = load_points(keyframe.points_path)[:, :3].astype(np.float64)
    forward, left = points[:, 1], -points[:, 0]  # nuScenes' LiDAR has x to the right and y ahead
    bearing_deg = np.degrees(np.arctan2(left, forward))
    distance_m = np.hypot(forward, left)
    for camera, degrees in LOOKS_AT_DEG.items():
        off_deg = np.abs((bearing_deg - degrees + 180) % 360 - 180)
        ahead = points[(off_deg < 5) & (distance_m > 8) & (np.abs(points[:, 2]) < 2)]
        assert len(ahead) > 10, camera
        for other, lidar2img in zip(CAMERA_NAMES, keyframe.calibration.lidar2img(), strict=True):
            pixels, depth_m = project(ahead, lidar2img)
            inside = (depth_m > 0) & (pixels >= 0).all(axis=1) & (pixels < (1600, 900)).all(axis=1)
            assert inside.all() if other == camera else not inside.any(), (camera, other)
            if other == camera:
                assert np.abs(pixels[:, 0] - 800).max() < 250


def test_the_real_boxes_hold_the_points_that_were_counted(keyframe: Sample, keyframe_root: Path) -> None:
    (path,) = keyframe_root.glob("*.pkl")
    info = load_pickle(path)["data_list"][0]
    annotated = [o for o in info["instances"] if o["bbox_label_3d"] >= 0]
    lidar_points = np.array([o["num_lidar_pts"] for o in annotated])
    inside = points_in_boxes(load_points(keyframe.points_path), keyframe.boxes).sum(axis=0)
    busy = lidar_points >= 10
    assert busy.sum() > 10
    assert (np.abs(inside - lidar_points) <= np.maximum(2, 0.1 * lidar_points))[busy].all()  # some lie on the faces
    radar_points = np.array([o["num_radar_pts"] for o in annotated])
    assert keyframe.num_points.tolist() == (lidar_points + radar_points).tolist()


def write_infos(root: Path, **changes: Any) -> dict[str, Any]:
    """A dataset of one frame, one camera and four objects; returns what the file holds."""
    root.mkdir(exist_ok=True)
    cv2.imwrite(str(root / "front.png"), np.zeros((9, 16, 3), np.uint8))
    (root / "samples" / "LIDAR_TOP").mkdir(parents=True, exist_ok=True)
    np.ones((2, 5), np.float32).tofile(root / "samples" / "LIDAR_TOP" / "log__LIDAR_TOP__1.bin")
    front = {
        "img_path": "front.png",
        "cam2img": [[10.0, 0, 8, 0], [0, 10, 4, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        "lidar2cam": np.diag([1.0, 2.0, 4.0, 1.0]),
    }
    instances = [
        {"bbox_3d": [1, 2, 3, 4, 2, 1.5, 0.5], "bbox_label_3d": 1, "velocity": [0.3, 0.4], "num_lidar_pts": 5,
         "num_radar_pts": 2},
        {"bbox_3d": [0] * 7, "bbox_label_3d": 2, "velocity": [0, 0], "num_lidar_pts": 1, "num_radar_pts": 0},
        {"bbox_3d": [9, 8, 7, 6, 5, 4, 3], "bbox_label_3d": 0, "num_lidar_pts": 0, "num_radar_pts": 0},
        {"bbox_3d": [0] * 7, "bbox_label_3d": -1, "velocity": [0, 0], "num_lidar_pts": 1, "num_radar_pts": 0},
    ]  # fmt: skip
    info = {
        "token": "t0",
        "timestamp": 1.5,
        "ego2global": np.eye(4) * 2,
        "images": {"CAM_FRONT": front},
        "lidar_points": {"lidar_path": "log__LIDAR_TOP__1.bin", "lidar2ego": np.eye(4) * 3},
        "instances": instances,
    }
    metainfo = {"info_version": "1.1", "categories": {"pedestrian": 0, "car": 1, "animal": 2}}
    content = {"metainfo": metainfo, "data_list": [info], **changes}
    (root / "train.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return content


def test_labels_go_by_name_and_other_classes_are_left_out(tmp_path: Path) -> None:
    write_infos(tmp_path)
    (sample,) = read_infos(tmp_path, "train.pkl", ("CAM_FRONT",))
    assert [CLASS_NAMES[label] for label in sample.labels] == ["car", "pedestrian"]
    assert sample.boxes[0].tolist() == [1, 2, 3, 4, 2, 1.5, 0.5, 0.3, 0.4]
    assert sample.boxes[1, :7].tolist() == [9, 8, 7, 6, 5, 4, 3]
    assert np.isnan(sample.boxes[1, 7:]).all()
    assert sample.num_points.tolist() == [7, 0]
    assert sample.attributes == ("vehicle.moving", "pedestrian.standing")
    assert sample.calibration.image_sizes_px == ((9, 16),)
    assert sample.calibration.cam2img[0].tolist() == [[10, 0, 8], [0, 10, 4], [0, 0, 1]]
    assert np.array_equal(sample.calibration.lidar2cam[0], np.diag([1, 2, 4, 1]))
    assert np.array_equal(sample.lidar2global, np.eye(4) * 6)
    assert sample.points_path == tmp_path / "samples" / "LIDAR_TOP" / "log__LIDAR_TOP__1.bin"
    assert (sample.token, sample.scene, sample.timestamp_s) == ("t0", "log", 1.5)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"metainfo": {"info_version": "1.0", "categories": {}}}, "'1.0'"),
        ({"metainfo": {"categories": {}}}, "None"),
        ({"data_list": []}, "'1.1'"),
    ],
)
def test_another_version_is_refused(tmp_path: Path, changes: dict[str, Any], got: str) -> None:
    write_infos(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        read_infos(tmp_path, "train.pkl", ("CAM_FRONT",))
    for part in (str(tmp_path / "train.pkl"), "expected a dict with metainfo.info_version '1.1'", f"got version {got}"):
        assert part in str(error.value)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pkl").write_bytes(pickle.dumps([{"token": "t"}]))
    with pytest.raises(DataError, match=r"old\.pkl is no mmdet3d info file"):
        read_infos(tmp_path, "old.pkl", ("CAM_FRONT",))


def test_the_info_file_must_be_one(tmp_path: Path) -> None:
    write_infos(tmp_path)
    (tmp_path / "val.pkl").touch()
    with pytest.raises(DataError, match=r"expected one file \*\.pkl .*found \['train\.pkl', 'val\.pkl'\]"):
        read_infos(tmp_path, "*.pkl", ("CAM_FRONT",))
    with pytest.raises(DataError, match=r"expected one file test\.pkl .*found none"):
        read_infos(tmp_path, "test.pkl", ("CAM_FRONT",))
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        read_infos(tmp_path / "nowhere", "train.pkl", ("CAM_FRONT",))


def test_missing_cameras_and_files_are_named(tmp_path: Path) -> None:
    write_infos(tmp_path)
    with pytest.raises(DataError, match=r"sample t0 lacks cameras \['CAM_BACK'\]; it has \['CAM_FRONT'\]"):
        read_infos(tmp_path, "train.pkl", ("CAM_FRONT", "CAM_BACK"))
    (tmp_path / "front.png").unlink()
    with pytest.raises(DataError) as error:
        read_infos(tmp_path, "train.pkl", ("CAM_FRONT",))
    for tried in ("front.png", "samples/CAM_FRONT/front.png"):
        assert str(tmp_path / tried) in str(error.value)


def test_cameras_come_in_the_order_asked_for(keyframe_root: Path) -> None:
    (sample,) = read_infos(keyframe_root, "*.pkl", ("CAM_BACK", "CAM_FRONT"))
    assert sample.calibration.cameras == ("CAM_BACK", "CAM_FRONT")
    back, front = sample.calibration.lidar2img() @ np.array([0, 10.0, 0, 1])
    assert back[2] < 0 < front[2]
    assert "CAM_BACK__" in sample.image_paths["CAM_BACK"].name
