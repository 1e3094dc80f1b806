"""nuScenes tables against the official devkit, and what is said of tables that are broken."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CATEGORY_TO_CLASS, CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.geometry.frames import invert, project

VERSION = "v1.0-trainval"
Edit = Callable[[list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def devkit(tiny_world: Path) -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("nuscenes.nuscenes")
        from nuscenes.utils import geometry_utils
        from pyquaternion import Quaternion

        nusc = module.NuScenes(version=VERSION, dataroot=str(tiny_world), verbose=False)
    return SimpleNamespace(nusc=nusc, geometry=geometry_utils, quaternion=Quaternion)


@pytest.fixture(scope="module")
def samples(tiny_world: Path) -> list[Sample]:
    tables = NuScenesTables(tiny_world, VERSION)
    return tables.samples(set(tables.scene_names()), CAMERA_NAMES)


@pytest.fixture
def copied(tiny_world: Path, tmp_path: Path) -> Path:
    """The tables alone: reading them touches no sensor file."""
    shutil.copytree(tiny_world / VERSION, tmp_path / VERSION)
    return tmp_path


def edit(root: Path, table: str, change: Edit) -> list[dict[str, Any]]:
    path = root / VERSION / f"{table}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    return rows


def read(root: Path) -> list[Sample]:
    tables = NuScenesTables(root, VERSION)
    return tables.samples(set(tables.scene_names()), CAMERA_NAMES)


def test_samples_are_those_of_the_devkit_in_order(samples: list[Sample], devkit: SimpleNamespace) -> None:
    expected = []
    for scene in sorted(devkit.nusc.scene, key=lambda scene: scene["name"]):
        token = scene["first_sample_token"]
        while token:
            record = devkit.nusc.get("sample", token)
            expected.append((token, scene["name"], record["timestamp"] / 1e6))
            token = record["next"]
    assert len(expected) == 8
    assert [(s.token, s.scene, s.timestamp_s) for s in samples] == expected


def test_boxes_equal_the_devkits_in_the_lidar_frame(samples: list[Sample], devkit: SimpleNamespace) -> None:
    nusc, seen = devkit.nusc, 0
    for sample in samples:
        lidar_token = nusc.get("sample", sample.token)["data"]["LIDAR_TOP"]
        path, theirs, _ = nusc.get_sample_data(lidar_token)
        assert str(sample.points_path) == path
        theirs = [box for box in theirs if box.name in CATEGORY_TO_CLASS]
        assert len(theirs) == len(sample.boxes) > 0
        rotation = devkit.quaternion(matrix=sample.lidar2global[:3, :3], rtol=1e-4, atol=1e-6).inverse
        for row, box in enumerate(theirs):
            ours = sample.boxes[row]
            heading = box.orientation.rotation_matrix[:, 0]
            velocity = rotation.rotate(nusc.box_velocity(box.token))
            width, length, height = box.wlh
            assert ours[:6] == pytest.approx([*box.center, length, width, height], abs=1e-6)
            assert np.exp(1j * ours[6]) == pytest.approx(complex(*heading[:2] / np.linalg.norm(heading[:2])), abs=1e-6)
            assert ours[7:9] == pytest.approx(velocity[:2], abs=1e-6, nan_ok=True)
            record = nusc.get("sample_annotation", box.token)
            assert sample.num_points[row] == record["num_lidar_pts"] + record["num_radar_pts"]
            assert CLASS_NAMES[sample.labels[row]] == CATEGORY_TO_CLASS[box.name]
            names = [nusc.get("attribute", token)["name"] for token in record["attribute_tokens"]]
            assert sample.attributes[row] == "".join(names)
            seen += bool(np.hypot(*ours[7:9]) > 1)
    assert seen > 10  # velocities were compared on objects that do move


def test_calibration_projects_where_the_devkit_does(samples: list[Sample], devkit: SimpleNamespace) -> None:
    from nuscenes.utils.geometry_utils import BoxVisibility

    in_front = 0
    for sample in samples[:2]:
        data = devkit.nusc.get("sample", sample.token)["data"]
        for index, camera in enumerate(sample.calibration.cameras):
            path, theirs, intrinsics = devkit.nusc.get_sample_data(data[camera], BoxVisibility.NONE)
            assert str(sample.image_paths[camera]) == path
            centers = np.array([box.center for box in theirs if box.name in CATEGORY_TO_CLASS])
            pixels, depth_m = project(sample.boxes[:, :3], sample.calibration.lidar2img()[index])
            assert depth_m == pytest.approx(centers[:, 2], abs=1e-6)
            visible = depth_m > 1
            in_front += visible.sum()
            expected = devkit.geometry.view_points(centers[visible].T, intrinsics, normalize=True)[:2].T
            assert pixels[visible] == pytest.approx(expected, abs=1e-4)
            record = devkit.nusc.get("sample_data", data[camera])
            assert sample.calibration.image_sizes_px[index] == (record["height"], record["width"])
    assert in_front > 100


def test_a_camera_that_fires_later_sees_from_further_on(copied: Path, samples: list[Sample]) -> None:
    """Real cameras and LiDAR fire at different times; the synthetic ones do not, so their ego poses are moved here."""
    moved_m = np.array([1.5, -0.5, 0.25])
    poses = {row["token"]: row for row in edit(copied, "ego_pose", lambda rows: None)}
    later: list[dict[str, Any]] = []

    def move(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if "/CAM_" in row["filename"]:
                pose = poses[row["ego_pose_token"]]
                translation = (np.array(pose["translation"]) + moved_m).tolist()
                later.append({**pose, "token": f"{row['token']}-pose", "translation": translation})
                row["ego_pose_token"] = f"{row['token']}-pose"

    edit(copied, "sample_data", move)
    edit(copied, "ego_pose", lambda rows: rows.extend(later))
    for before, after in zip(samples, read(copied), strict=True):
        assert np.array_equal(after.lidar2global, before.lidar2global)
        back = np.eye(4)
        back[:3, 3] = -moved_m  # what a global point looks like from the moved camera: as if it had moved back
        expected = before.calibration.lidar2cam @ invert(before.lidar2global) @ back @ before.lidar2global
        assert after.calibration.lidar2cam == pytest.approx(expected, abs=1e-6)


def test_radar_points_count_too(copied: Path, samples: list[Sample]) -> None:
    edit(copied, "sample_annotation", lambda rows: [row.update(num_radar_pts=3) for row in rows])
    assert np.array_equal(read(copied)[0].num_points, samples[0].num_points + 3)


def test_some_scenes_and_cameras_can_be_chosen(tiny_world: Path) -> None:
    tables = NuScenesTables(tiny_world, VERSION)
    first = tables.scene_names()[0]
    chosen = tables.samples({first}, ("CAM_BACK", "CAM_FRONT"))
    assert {sample.scene for sample in chosen} == {first}
    assert len(chosen) == 4
    assert chosen[0].calibration.cameras == ("CAM_BACK", "CAM_FRONT") == tuple(chosen[0].image_paths)


def longest_track(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_token = {row["token"]: row for row in rows}
    tracks = []
    for row in rows:
        if not row["prev"]:
            track = [row]
            while track[-1]["next"]:
                track.append(by_token[track[-1]["next"]])
            tracks.append(track)
    return max(tracks, key=len)


def velocities(root: Path) -> dict[str, Any]:
    """Velocity by annotation token; rows of a sample stand in the table's order."""
    classes = {row["token"]: row["name"] for row in json.loads((root / VERSION / "category.json").read_text())}
    instances = json.loads((root / VERSION / "instance.json").read_text())
    known = {row["token"] for row in instances if classes[row["category_token"]] in CATEGORY_TO_CLASS}
    tokens: dict[str, list[str]] = {}
    for row in json.loads((root / VERSION / "sample_annotation.json").read_text()):
        if row["instance_token"] in known:
            tokens.setdefault(row["sample_token"], []).append(row["token"])
    found: dict[str, Any] = {}
    for sample in read(root):
        assert sample.annotations is not None
        found |= zip(tokens[sample.token], sample.annotations.velocity_mps, strict=True)
    return found


def test_velocities_are_those_of_the_devkit(tiny_world: Path, devkit: SimpleNamespace) -> None:
    found = velocities(tiny_world)
    assert len(found) > 50
    for token, velocity in found.items():
        np.testing.assert_array_equal(velocity, devkit.nusc.box_velocity(token)[:2])


def test_velocity_of_short_and_interrupted_tracks(copied: Path) -> None:
    """The devkit's rule: neighbours at most 1.5 s apart, 3 s for a central difference; else unknown."""
    times = {row["token"]: row["timestamp"] for row in edit(copied, "sample", lambda rows: None)}
    gap_us = 1_600_000

    def stretch(rows: list[dict[str, Any]]) -> None:
        track = longest_track(rows)
        assert len(track) == 4
        for step, row in enumerate(track):
            row["translation"] = [10.0 * step * step, -2.0 * step, 0.0]
        track[0]["next"], track[1]["prev"] = "", ""  # alone, then three in a row

    rows = edit(copied, "sample_annotation", stretch)
    track = [row for row in rows if row["translation"][0] in (0.0, 10.0, 40.0, 90.0) and row["translation"][2] == 0.0]
    track.sort(key=lambda row: row["translation"][0])
    found = velocities(copied)
    seconds = [1e-6 * times[row["sample_token"]] for row in track]
    assert np.isnan(found[track[0]["token"]]).all()
    forward = (30 / (seconds[2] - seconds[1]), -2 / (seconds[2] - seconds[1]))
    assert found[track[1]["token"]] == pytest.approx(forward)
    central = (80 / (seconds[3] - seconds[1]), -4 / (seconds[3] - seconds[1]))
    assert found[track[2]["token"]] == pytest.approx(central)

    moved = track[3]["sample_token"]
    start = times[track[2]["sample_token"]]
    edit(copied, "sample", lambda rows: [r.update(timestamp=start + gap_us) for r in rows if r["token"] == moved])
    found = velocities(copied)
    assert np.isnan(found[track[3]["token"]]).all()  # 1.6 s between two
    assert np.isfinite(found[track[2]["token"]]).all()  # 2.1 s over three
    edit(copied, "sample", lambda rows: [r.update(timestamp=start + 2 * gap_us) for r in rows if r["token"] == moved])
    assert np.isnan(velocities(copied)[track[2]["token"]]).all()  # 3.7 s over three


def test_categories_outside_detection_are_left_out(copied: Path, samples: list[Sample]) -> None:
    def rename(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] == "vehicle.car":
                row["name"] = "animal"

    edit(copied, "category", rename)
    car = CLASS_NAMES.index("car")
    assert (samples[0].labels == car).sum() > 0
    kept = read(copied)[0]
    assert np.array_equal(kept.boxes, samples[0].boxes[samples[0].labels != car], equal_nan=True)


def test_bike_racks_are_kept_apart(copied: Path, samples: list[Sample]) -> None:
    def rename(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["name"] == "vehicle.car":
                row["name"] = "static_object.bicycle_rack"
            elif row["name"] == "static_object.bicycle_rack":
                row["name"] = "animal"

    edit(copied, "category", rename)
    car = samples[0].labels == CLASS_NAMES.index("car")
    kept = read(copied)[0]
    assert samples[0].annotations is not None and kept.annotations is not None and kept.bike_racks is not None
    assert 0 < len(kept.bike_racks) == car.sum() and len(kept.annotations) == len(kept.boxes) == (~car).sum()
    np.testing.assert_array_equal(kept.bike_racks.translation_m, samples[0].annotations.translation_m[car])
    np.testing.assert_array_equal(kept.bike_racks.size_m, samples[0].annotations.size_m[car])


@pytest.mark.parametrize(
    ("table", "field", "into"),
    [
        ("sample_annotation", "instance_token", "instance"),
        ("instance", "category_token", "category"),
        ("sample_data", "ego_pose_token", "ego_pose"),
        ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
        ("calibrated_sensor", "sensor_token", "sensor"),
        ("sample", "scene_token", "scene"),
    ],
)
def test_dangling_tokens_are_named(copied: Path, table: str, field: str, into: str) -> None:
    def break_all(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row[field] = "0badc0de"

    edit(copied, table, break_all)
    with pytest.raises(DataError, match=rf"dangling token: {into}\.json in .* has no row '0badc0de'"):
        read(copied)


def test_duplicate_tokens_are_counted(copied: Path) -> None:
    rows = edit(copied, "ego_pose", lambda rows: rows.append(rows[0]))
    with pytest.raises(DataError, match=rf"ego_pose\.json repeats tokens: {len(rows)} rows, {len(rows) - 1} tokens"):
        read(copied)


def test_missing_and_cut_tables_are_named(copied: Path) -> None:
    attribute = copied / VERSION / "attribute.json"
    attribute.write_text(attribute.read_text()[:-20])
    with pytest.raises(DataError, match=r"attribute\.json is not valid JSON"):
        read(copied)
    attribute.unlink()
    with pytest.raises(DataError, match=r"attribute\.json cannot be read: No such file"):
        read(copied)


def test_a_sample_without_a_sensor_is_named(copied: Path) -> None:
    def drop(rows: list[dict[str, Any]]) -> None:
        lost = next(row for row in rows if "CAM_BACK/" in row["filename"] and row["is_key_frame"])
        lost["is_key_frame"] = False
        lost_of.append(lost["sample_token"])

    lost_of: list[str] = []
    edit(copied, "sample_data", drop)
    with pytest.raises(DataError, match=rf"sample {lost_of[0]} of .* has no keyframe of \['CAM_BACK'\]"):
        read(copied)


def test_not_a_root_says_what_is_there(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no-such is not a nuScenes root .*there is no such folder"):
        NuScenesTables(tmp_path / "no-such", VERSION)
    with pytest.raises(DataError, match=r"with version v1\.0-mini: the folder holds \['v1\.0-trainval'\]"):
        NuScenesTables(copied, "v1.0-mini")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds no v1\.0-\* tables"):
        NuScenesTables(tmp_path / "empty", VERSION)
