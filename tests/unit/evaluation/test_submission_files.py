from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import ArtifactError, DataError
from bevkd_deploy.evaluation import submission_files
from bevkd_deploy.evaluation.box_table import BoxTable
from bevkd_deploy.evaluation.records import Kind, read_boxes
from bevkd_deploy.evaluation.submission_files import Submission, read_submission

NAN = float("nan")


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        path = tmp_path / "file.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def _assert_same(got: BoxTable, expected: BoxTable) -> None:
    for field in fields(BoxTable):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name), field.name)


def _records(make_record: Any, **more: Any) -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    return {
        token: [
            make_record(token, (float(x), index), detection_score=float(rng.random()), size=[1, 2.5, 3], **more)
            for index, x in enumerate(rng.normal(size=count))
        ]
        for token, count in {"a": 0, "b": 3, "c": 1, "d": 0, "e": 4}.items()
    }


@pytest.mark.parametrize("bytes_per_record", [0, 500])
@pytest.mark.parametrize("more", [{}, {"num_pts": 3}, {"ego_translation": [1, 2, 3.5], "num_pts": 0}])
@pytest.mark.parametrize("kind", list(Kind))
def test_columns_are_those_of_the_plain_records(
    kind: Kind, more: Any, bytes_per_record: int, make_record: Any, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission_files, "_BYTES_PER_RECORD", bytes_per_record)
    records = _records(make_record, **more)
    read = read_submission(written({"meta": {"use_lidar": True}, "results": records}), kind)
    _assert_same(read.boxes, read_boxes(records, kind))
    assert read.meta == {"use_lidar": True} and read.bike_racks is None


@pytest.mark.parametrize("note", ["", "NaN", "NaN of", 'a "quoted" NaN'])
def test_unknown_velocity_as_null_or_nan(note: str, make_record: Any, written: Any) -> None:
    """Python writes NaN, which JSON does not have; the letters may also stand in a text."""
    records = _records(make_record, note=note)
    records["b"][1]["velocity"], records["e"][0]["velocity"] = [NAN, NAN], [None, 1.0]
    read = read_submission(written({"results": records}), Kind.GROUND_TRUTH)
    _assert_same(read.boxes, read_boxes(records, Kind.GROUND_TRUTH))
    assert read.meta == {}
    with pytest.raises(DataError, match="sample 'b', record 1: velocity must be finite, got"):
        read_submission(written({"results": records}), Kind.RESULTS)


def test_results_without_samples(written: Any) -> None:
    assert read_submission(written({"meta": None, "results": {}}), Kind.RESULTS).boxes.tokens == ()


def test_racks_and_meta_are_kept(make_record: Any, written: Any) -> None:
    racks = {"a": [{"translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0]}]}
    content = {"meta": {"scenes": {"a": "scene-1"}}, "results": {"a": [make_record()]}, "bike_racks": racks}
    read = read_submission(written(content), Kind.GROUND_TRUTH)
    assert isinstance(read, Submission) and read.bike_racks == racks and read.meta == content["meta"]
    for wrong in ([], {"a": {}}):
        with pytest.raises(DataError, match="bike_racks must map sample tokens to lists of racks"):
            read_submission(written({**content, "bike_racks": wrong}), Kind.GROUND_TRUTH)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"translation": None}, "no translation"),
        ({"detection_score": None}, "no detection_score"),
        ({"translation": [NAN, 0, 0]}, r"translation must be finite, got \[nan, 0.0, 0.0\]"),
        ({"translation": [float("inf"), 0, 0]}, r"translation must be finite, got \[inf, 0.0, 0.0\]"),
        ({"translation": [0, 10**400, 0]}, "translation must be 3 numbers, got one too large"),
        ({"translation": [0, 0]}, r"translation must be 3 numbers, got \[0, 0\]"),
        ({"translation": [0, "1", 0]}, r"translation must be 3 numbers, got \[0, '1', 0\]"),
        ({"size": [2, 0, 1]}, r"size \(w, l, h\) must be positive metres, got \[2.0, 0.0, 1.0\]"),
        ({"rotation": [0, 0, 0, 0]}, "rotation must be a quaternion"),
        ({"detection_name": "Car"}, "unknown detection_name 'Car'"),
        ({"detection_name": 5}, "unknown detection_name 5"),
        ({"attribute_name": "parked"}, "unknown attribute_name 'parked'"),
        ({"detection_score": "0.5"}, "detection_score must be a number, got '0.5'"),
        ({"detection_score": -0.1}, "detection_score must be zero or more, got -0.1"),
        ({"sample_token": "b"}, "sample_token must be 'a', the sample it is under, got 'b'"),
        ({"num_pts": 3}, "has num_pts, but the first record has not"),
    ],
)
def test_errors_are_those_of_the_plain_records(bad: Any, message: str, make_record: Any, written: Any) -> None:
    records = {"before": [make_record("before")] * 3, "a": [make_record("a"), make_record("a", **bad)], "after": []}
    path = written({"meta": {}, "results": records})
    with pytest.raises(DataError, match=rf"^results {path}: sample 'a', record 1: {message}"):
        read_submission(path, Kind.RESULTS)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", ArtifactError, "is not valid JSON"),
        ("[]", DataError, "not a nuScenes submission"),
        ('{"results": []}', DataError, "not a nuScenes submission"),
        ('{"results": {"a": {}}}', DataError, "sample 'a' must hold a list of records, got dict"),
        ('{"results": {"a": ["car"]}}', DataError, "sample 'a', record 0: a record must be an object, got str"),
        ('{"results": {"a": [NaN]}}', DataError, "sample 'a', record 0: a record must be an object, got"),
    ],
)
def test_other_content_is_refused(content: str, error: type[Exception], message: str, written: Any) -> None:
    with pytest.raises(error, match=message):
        read_submission(written(content), Kind.RESULTS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="ground truth not found: .*truth.json"):
        read_submission(tmp_path / "truth.json", Kind.GROUND_TRUTH)
