"""write_dataset: the files, their determinism, and what an interruption leaves behind."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES, CATEGORY_TO_CLASS, CLASS_NAMES, LIDAR_NAME
from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.data.synthetic import PROFILES, write_dataset
from bevkd_deploy.data.synthetic.layout import overlapping
from bevkd_deploy.data.synthetic.profiles import Profile
from bevkd_deploy.data.synthetic.tables import CATEGORIES, TABLE_NAMES, visibility_token
from bevkd_deploy.geometry.frames import invert, pose, transform_points

SHORT = replace(PROFILES["tiny"], name="short", keyframes=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("world") / "tiny", profile="tiny", train_scenes=3, val_scenes=1, seed=7
    )


def tables_of(root: Path) -> dict[str, list[dict]]:
    return {name: json.loads((root / "v1.0-trainval" / f"{name}.json").read_text()) for name in TABLE_NAMES}


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_keyframe_has_six_images_and_one_scan_of_the_declared_form(root: Path) -> None:
    tables = tables_of(root)
    assert len(tables["sample"]) == 4 * 4
    assert len(tables["sample_data"]) == 16 * 7
    for record in tables["sample_data"]:
        channel = record["filename"].split("/")[1]
        if channel == LIDAR_NAME:
            points = np.fromfile(root / record["filename"], dtype=np.float32).reshape(-1, 5)
            assert len(points) > 3000
            assert np.isfinite(points).all()
            assert points[:, 3].min() >= 0 and points[:, 3].max() <= 255
            assert set(np.unique(points[:, 4])) <= set(range(32))
            assert np.linalg.norm(points[:, :3], axis=1).max() < 45.2
        else:
            assert channel in CAMERA_NAMES
            image = cv2.imread(str(root / record["filename"]))
            assert image is not None
            assert image.shape == (record["height"], record["width"], 3)
    assert (root / "sweeps" / LIDAR_NAME).is_dir()


def test_records_are_unique_and_refer_to_one_another(root: Path) -> None:
    tables = tables_of(root)
    known = {name: {record["token"] for record in records} for name, records in tables.items()}
    assert len(CATEGORIES) == 23
    for name, records in tables.items():
        assert len(known[name]) == len(records)
        if name != "visibility":
            assert all(len(token) == 32 and int(token, 16) >= 0 for token in known[name])
        for record in records:
            for key, value in record.items():
                table = key.removesuffix("_token")
                if key.endswith("_token") and table in known:
                    assert value in known[table], (name, key)
                if key in ("prev", "next") and value:
                    assert value in known[name]
            assert set(record.get("attribute_tokens", [])) <= known["attribute"]


def test_splits_and_manifest(root: Path) -> None:
    splits = json.loads((root / "splits.json").read_text())
    names = [scene["name"] for scene in tables_of(root)["scene"]]
    assert splits == {"train": names[:3], "val": names[3:]}
    manifest = json.loads((root / "dataset.json").read_text())
    assert manifest["profile"]["name"] == "tiny"
    assert manifest["seed"] == 7
    assert manifest["scenes"] == {"train": 3, "val": 1}
    assert len(manifest["parameters_sha256"]) == 64


def test_all_ten_classes_appear_with_returns(root: Path) -> None:
    tables = tables_of(root)
    category = {record["token"]: record["name"] for record in tables["category"]}
    instance = {record["token"]: category[record["category_token"]] for record in tables["instance"]}
    seen = Counter(
        CATEGORY_TO_CLASS[instance[record["instance_token"]]]
        for record in tables["sample_annotation"]
        if record["num_lidar_pts"] > 0
    )
    assert set(seen) == set(CLASS_NAMES)
    assert 20 < sum(seen.values()) / len(tables["sample"]) < 60


def test_boxes_of_a_keyframe_do_not_overlap(root: Path) -> None:
    tables = tables_of(root)
    for sample in tables["sample"]:
        boxes = [record for record in tables["sample_annotation"] if record["sample_token"] == sample["token"]]
        poses = np.array(
            [[*box["translation"][:2], 2 * np.arctan2(box["rotation"][3], box["rotation"][0])] for box in boxes]
        )
        halves = np.array([[box["size"][1] / 2, box["size"][0] / 2] for box in boxes])
        first, second = np.triu_indices(len(boxes), k=1)
        assert not overlapping(poses[first], halves[first], poses[second], halves[second]).any()


@pytest.mark.parametrize(
    ("gap", "yaw", "expected"),
    [(1.9, 0.0, True), (2.1, 0.0, False), (2.3, np.pi / 4, True), (2.5, np.pi / 4, False)],
)
def test_overlap_of_two_squares(gap: float, yaw: float, expected: bool) -> None:
    # side 2; turned by 45 degrees its corner reaches sqrt(2), so contact ends at 1 + sqrt(2) = 2.414
    half = np.ones((1, 2))
    assert overlapping(np.zeros((1, 3)), half, np.array([[gap, 0.0, yaw]]), half)[0] == expected


def test_num_lidar_pts_is_the_number_of_points_in_the_box(root: Path) -> None:
    tables = tables_of(root)
    by_token = {
        name: {record["token"]: record for record in tables[name]} for name in ("ego_pose", "calibrated_sensor")
    }
    for data in tables["sample_data"]:
        if LIDAR_NAME not in data["filename"]:
            continue
        calibrated = by_token["calibrated_sensor"][data["calibrated_sensor_token"]]
        ego = by_token["ego_pose"][data["ego_pose_token"]]
        lidar2global = pose(ego["rotation"], ego["translation"]) @ pose(
            calibrated["rotation"], calibrated["translation"]
        )
        points = np.fromfile(root / data["filename"], dtype=np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
        points = transform_points(lidar2global, points)
        for box in tables["sample_annotation"]:
            if box["sample_token"] == data["sample_token"]:
                local = transform_points(invert(pose(box["rotation"], box["translation"])), points)
                width, length, height = box["size"]
                inside = (np.abs(local) <= np.array([length, width, height]) / 2).all(axis=1)
                assert inside.sum() == box["num_lidar_pts"]


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", profile=SHORT, train_scenes=2, val_scenes=1, seed=3)
    two = write_dataset(tmp_path / "two", profile=SHORT, train_scenes=2, val_scenes=1, seed=3, workers=2)
    other = write_dataset(tmp_path / "other", profile=SHORT, train_scenes=2, val_scenes=1, seed=4)
    assert digests(one) == digests(two)
    sensors = {digest for name, digest in digests(one).items() if name.startswith("samples")}
    assert len(sensors) == 3 * 2 * 7  # no two scenes or instants look alike
    assert not sensors & set(digests(other).values())


def test_sweeps_lie_between_keyframes_and_are_chained(tmp_path: Path) -> None:
    profile = replace(SHORT, sweeps_between=3)
    tables = tables_of(write_dataset(tmp_path / "sweeps", profile=profile, train_scenes=1, val_scenes=0, seed=1))
    scans = [record for record in tables["sample_data"] if LIDAR_NAME in record["filename"]]
    assert [record["is_key_frame"] for record in scans] == [True, False, False, False, True]
    assert np.diff([record["timestamp"] for record in scans]).tolist() == [125_000] * 4
    assert [record["next"] for record in scans[:-1]] == [record["token"] for record in scans[1:]]
    assert {record["sample_token"] for record in scans[1:]} == {tables["sample"][1]["token"]}
    assert all(record["filename"].startswith("sweeps/") for record in scans[1:4])


def test_reports_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    profile = replace(SHORT, keyframes=1)
    write_dataset(
        tmp_path / "d", profile=profile, train_scenes=2, val_scenes=0, seed=0, on_scene=lambda *n: calls.append(n)
    )
    assert calls == [(1, 2), (2, 2)]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "d", profile=SHORT, train_scenes=2, val_scenes=0, seed=0, on_scene=stop)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        write_dataset(tmp_path, profile="tiny", train_scenes=1, val_scenes=0, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_unknown_profile_lists_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'huge', expected one of quickstart, standard, tiny"):
        write_dataset(tmp_path / "d", profile="huge", train_scenes=1, val_scenes=0, seed=0)


@pytest.mark.parametrize("wrong", [{"train_scenes": 0}, {"val_scenes": -1}, {"workers": 0}, {"seed": -1}])
def test_refuses_impossible_numbers(tmp_path: Path, wrong: dict[str, int]) -> None:
    arguments = {"train_scenes": 1, "val_scenes": 0, "seed": 0, "workers": 1, **wrong}
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be at least"):
        write_dataset(tmp_path / "d", profile="tiny", **arguments)  # type: ignore[arg-type]


def test_profile_refuses_another_aspect_ratio() -> None:
    with pytest.raises(UsageError, match="ratio of 900x1600"):
        Profile("square", (400, 400), 1, 90, 45.0, 42.0, 0)


@pytest.mark.parametrize(
    ("seen", "possible", "expected"),
    [(0, 0, "1"), (0, 9, "1"), (4, 10, "1"), (5, 10, "2"), (7, 10, "3"), (10, 10, "4")],
)
def test_visibility_levels(seen: int, possible: int, expected: str) -> None:
    assert visibility_token(seen, possible) == expected
