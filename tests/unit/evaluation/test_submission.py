from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import ArtifactError, DataError, NonFiniteError
from bevkd_deploy.evaluation.metrics import evaluate
from bevkd_deploy.evaluation.records import Kind, read_boxes
from bevkd_deploy.evaluation.submission import boxes_to_records, load_submission, nan_to_null, write_submission
from bevkd_deploy.geometry.frames import pose, yaw_pose

BOX = np.array([[2.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.0, 1.0, 0.0]])  # ahead of the sensor, driving away


def test_a_box_lands_where_the_turned_sensor_sees_it() -> None:
    lidar2global = yaw_pose(np.pi / 2, [100.0, 200.0, 0.5])
    (record,) = boxes_to_records("a", BOX, np.array([0.25]), np.array([0]), CLASS_NAMES, lidar2global, [99.0, 200.0, 0])
    assert record["sample_token"] == "a" and record["detection_name"] == "car"
    assert record["translation"] == pytest.approx([100, 202, 1.5])
    assert record["ego_translation"] == pytest.approx([1, 2, 1.5])
    assert record["size"] == [2.0, 4.0, 1.5]
    assert record["rotation"] == pytest.approx([math.sqrt(0.5), 0, 0, math.sqrt(0.5)])
    assert record["velocity"] == pytest.approx([0, 1])
    assert record["detection_score"] == 0.25 and record["attribute_name"] == "vehicle.moving"
    assert "num_pts" not in record
    json.dumps(record)  # plain numbers


def test_ground_truth_keeps_points_attributes_and_unknown_velocity() -> None:
    boxes = BOX.copy()
    boxes[0, 7:] = np.nan
    arguments = ("a", boxes, None, np.array([1]), ("bus", "pedestrian"), np.eye(4), np.zeros(3), np.array([12]))
    (record,) = boxes_to_records(*arguments, attributes=["pedestrian.sitting_lying_down"])
    assert record["num_pts"] == 12 and record["attribute_name"] == "pedestrian.sitting_lying_down"
    assert np.isnan(record["velocity"]).all() and "detection_score" not in record
    (record,) = boxes_to_records(*arguments)
    assert record["attribute_name"] == "pedestrian.standing"


@pytest.mark.skipif(importlib.util.find_spec("nuscenes") is None, reason="nuscenes-devkit is not installed")
def test_records_equal_the_devkit_boxes_through_tilted_poses() -> None:
    from nuscenes.eval.common.utils import quaternion_yaw
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    rng = np.random.default_rng(0)
    for _ in range(20):
        boxes = rng.normal(size=(3, 9)) * [20, 20, 2, 1, 1, 1, 3, 5, 5]
        boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.5
        (lidar2ego_q, ego2global_q), shifts = rng.normal(size=(2, 4)), rng.normal(size=(2, 3)) * 100
        lidar2global = pose(ego2global_q, shifts[1]) @ pose(lidar2ego_q, shifts[0])
        records = boxes_to_records(
            "a", boxes, np.full(3, 0.5), np.zeros(3, dtype=int), ("car",), lidar2global, shifts[1]
        )
        table = read_boxes({"a": records}, Kind.RESULTS)
        for index, (record, box) in enumerate(zip(records, boxes, strict=True)):
            expected = Box(
                box[:3], box[[4, 3, 5]], Quaternion(axis=[0, 0, 1], radians=box[6]), velocity=(box[7], box[8], 0.0)
            )
            for rotation, shift in ((lidar2ego_q, shifts[0]), (ego2global_q, shifts[1])):
                expected.rotate(Quaternion(rotation).normalised)
                expected.translate(shift)
            assert record["translation"] == pytest.approx(expected.center, abs=1e-9)
            assert record["size"] == pytest.approx(expected.wlh)
            assert record["velocity"] == pytest.approx(expected.velocity[:2], abs=1e-9)
            got = Quaternion(record["rotation"])
            assert abs(np.dot(got.q, expected.orientation.q)) == pytest.approx(1.0, abs=1e-12)
            assert np.exp(1j * table.yaw_rad[index]) == pytest.approx(
                np.exp(1j * quaternion_yaw(expected.orientation)), abs=1e-9
            )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": BOX[:, :7]}, DataError, r"boxes must be \[n, 9\]"),
        ({"scores": np.zeros(2)}, DataError, "scores must have one entry per box, 1, got 2"),
        ({"labels": np.array([10])}, DataError, "box 0: label 10 is no index into classes"),
        ({"labels": np.array([-1])}, DataError, "label -1"),
        ({"num_points": np.zeros(3)}, DataError, "num_points must have one entry"),
        ({"scores": np.array([np.nan])}, NonFiniteError, "sample 'a', box 0: NaN or infinite: .*score nan"),
        ({"boxes": BOX * np.nan}, NonFiniteError, "box 0"),
        ({"boxes": np.where(np.arange(9) == 8, np.nan, BOX)}, NonFiniteError, "box 0"),
        ({"boxes": np.where(np.arange(9) == 8, np.inf, BOX), "scores": None}, NonFiniteError, "box 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "token": "a",
        "boxes": BOX,
        "scores": np.array([0.5]),
        "labels": np.array([0]),
        "classes": CLASS_NAMES,
        "lidar2global": np.eye(4),
        "ego_translation_m": np.zeros(3),
    }
    with pytest.raises(error, match=message):
        boxes_to_records(**{**arguments, **change})


def test_files_come_back_as_written(tmp_path: Path, make_record: Any) -> None:
    results = {"a": [make_record("a")], "b": []}
    path = write_submission(tmp_path / "results.json", results, {"use_lidar": True})
    assert load_submission(path) == results
    assert json.loads(path.read_text())["meta"] == {"use_lidar": True}
    truth = {"a": [make_record("a", velocity=[np.nan, np.nan])]}
    path = write_submission(tmp_path / "truth.json", truth, {})
    loaded = load_submission(path, ground_truth=True)
    assert loaded["a"][0]["velocity"] == [None, None]
    assert evaluate({"a": [make_record("a")]}, loaded) == evaluate({"a": [make_record("a")]}, truth)


def test_nan_becomes_null_and_the_rest_stays() -> None:
    assert nan_to_null({1.5: [float("nan"), (2.0, "x", None)]}) == {1.5: [None, [2.0, "x", None]]}


@pytest.mark.parametrize("content", ["[]", "{}", '{"results": []}', "3"])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"results .*results.json: not a nuScenes submission; it needs"):
        load_submission(path)


def test_bad_records_name_the_file(tmp_path: Path, make_record: Any) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"meta": {}, "results": {"tok": [make_record("tok", size=[0, 1, 1])]}}))
    with pytest.raises(DataError, match=r"^ground truth .*truth.json: sample 'tok', record 0: size"):
        load_submission(path, ground_truth=True)
    with pytest.raises(ArtifactError, match="results not found"):
        load_submission(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        load_submission(path)
