from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation import records as records_module
from bevkd_deploy.evaluation.box_table import ATTRIBUTE_NAMES
from bevkd_deploy.evaluation.records import Kind, read_boxes

NAN, INF = float("nan"), float("inf")


def test_columns_hold_what_the_records_say(make_record: Any) -> None:
    half = np.sqrt(0.5)
    second = make_record(
        "b",
        (3, 4),
        size=[1, 2, 3],
        rotation=[2 * half, 0, 0, 2 * half],  # any length
        velocity=[5, 6],
        detection_name="bicycle",
        attribute_name="cycle.with_rider",
        detection_score=1,
        ego_translation=[3, -4, 100],
        num_pts=7,
    )
    table = read_boxes({"a": [], "b": [make_record("b", ego_translation=[0, 0, 0], num_pts=0), second]}, Kind.RESULTS)
    assert table.tokens == ("a", "b") and table.sample.tolist() == [1, 1] and len(table) == 2
    row = table.select(np.array([1]))
    assert row.translation_m.tolist() == [[3, 4, 0]] and row.size_m.tolist() == [[1, 2, 3]]
    assert row.yaw_rad == pytest.approx([np.pi / 2], abs=1e-15)
    assert row.velocity_mps.tolist() == [[5, 6]] and row.score.tolist() == [1]
    assert CLASS_NAMES[row.label[0]] == "bicycle" and ATTRIBUTE_NAMES[row.attribute[0]] == "cycle.with_rider"
    assert row.num_pts is not None and row.num_pts.tolist() == [7]
    assert row.ego_distance_m is not None and row.ego_distance_m.tolist() == [5]


def test_samples_can_be_taken_in_another_order(make_record: Any) -> None:
    records = {
        token: [make_record(token, (index, 0), num_pts=index) for index in range(count)]
        for token, count in {"a": 2, "b": 0, "c": 3, "d": 1}.items()
    }
    table = read_boxes(records, Kind.RESULTS)
    for tokens in (("c", "b", "a"), ("d",), (), ("a", "b", "c", "d")):
        expected = read_boxes(records, Kind.RESULTS, tokens=tokens)
        taken = table.of_samples(tokens)
        for field in fields(taken):
            np.testing.assert_array_equal(getattr(taken, field.name), getattr(expected, field.name), field.name)
    with pytest.raises(KeyError):
        table.of_samples(("e",))


@pytest.mark.parametrize("unknown", [[NAN, NAN], [None, None]])
def test_ground_truth_may_leave_a_velocity_unknown(unknown: list[Any], make_record: Any) -> None:
    records = {"a": [make_record(velocity=unknown, detection_score=None), make_record(velocity=[1, 2])]}
    table = read_boxes(records, Kind.GROUND_TRUTH)
    assert np.isnan(table.velocity_mps[0]).all() and table.velocity_mps[1].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"results: sample 'a', record 0: velocity must be finite"):
        read_boxes({"a": [make_record(velocity=unknown)]}, Kind.RESULTS)


FIELDS = ["sample_token", "translation", "size", "rotation", "velocity", "detection_name", "attribute_name"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *[({field: None}, f"no {field}$") for field in [*FIELDS, "detection_score"]],
        *[({field: [NAN] * 3}, f"{field} must be finite, got") for field in ("translation", "size")],
        ({"translation": [0, INF, 0]}, r"translation must be finite, got \[0.0, inf, 0.0\]"),
        ({"translation": [0, None, 0]}, "translation must be finite"),
        ({"translation": [0, 10**400, 0]}, "translation must be 3 numbers, got one too large"),
        ({"translation": [0, 0]}, r"translation must be 3 numbers, got \[0, 0\]"),
        ({"translation": [0, "1", 0]}, r"translation must be 3 numbers, got \[0, '1', 0\]"),
        ({"translation": 5}, "translation must be 3 numbers, got 5"),
        ({"translation": {"x": 1}}, "translation must be 3 numbers"),
        ({"size": [2, 0, 1]}, r"size \(w, l, h\) must be positive metres, got \[2.0, 0.0, 1.0\]"),
        ({"size": [2, -4, 1]}, r"size \(w, l, h\) must be positive metres"),
        ({"rotation": [NAN, 0, 0, 1]}, "rotation must be finite"),
        ({"rotation": [0, 0, 0, 0]}, "rotation must be a quaternion"),
        ({"rotation": [1, 0, 0]}, "rotation must be 4 numbers"),
        ({"velocity": [INF, 0]}, "velocity must be finite"),
        ({"velocity": [0, 0, 0]}, "velocity must be 2 numbers"),
        ({"detection_name": "Car"}, r"unknown detection_name 'Car'; it must be one of \['car', "),
        ({"detection_name": ["car"]}, r"unknown detection_name \['car'\]"),
        ({"attribute_name": "parked"}, "unknown attribute_name 'parked'"),
        ({"detection_score": NAN}, "detection_score must be finite, got nan"),
        ({"detection_score": "0.5"}, "detection_score must be a number, got '0.5'"),
        ({"detection_score": [0.5]}, r"detection_score must be a number, got \[0.5\]"),
        ({"detection_score": -0.1}, "detection_score must be zero or more, got -0.1"),
        ({"sample_token": "b"}, "sample_token must be 'a', the sample it is under, got 'b'"),
    ],
)
def test_a_malformed_record_is_named(bad: dict[str, Any], message: str, make_record: Any) -> None:
    records = {"before": [make_record("before")] * 3, "a": [make_record("a"), make_record("a", **bad)], "after": []}
    with pytest.raises(DataError, match=f"^results: sample 'a', record 1: {message}"):
        read_boxes(records, Kind.RESULTS)


@pytest.mark.parametrize("field", [{"ego_translation": [0, 0, 0]}, {"num_pts": 3}])
def test_an_optional_field_is_carried_by_all_records_or_none(field: dict[str, Any], make_record: Any) -> None:
    name = next(iter(field))
    with pytest.raises(DataError, match=f"sample 'a', record 1: no {name}, but the first record has it"):
        read_boxes({"a": [make_record(**field), make_record(), make_record(**field)]}, Kind.GROUND_TRUTH)
    with pytest.raises(DataError, match=f"sample 'a', record 1: has {name}, but the first record has not"):
        read_boxes({"a": [make_record(), make_record(**field)]}, Kind.GROUND_TRUTH)


def test_no_samples_make_an_empty_table() -> None:
    table = read_boxes({}, Kind.RESULTS)
    assert len(table) == 0 and table.tokens == () and table.translation_m.shape == (0, 3)


def test_chunks_change_nothing(make_record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {
        token: [make_record(token, (index, 0), num_pts=index) for index in range(count)]
        for token, count in {"a": 2, "b": 0, "c": 5, "d": 1, "e": 0}.items()
    }
    whole = read_boxes(records, Kind.RESULTS)
    assert whole.sample.tolist() == [0, 0, 2, 2, 2, 2, 2, 3]
    monkeypatch.setattr(records_module, "RECORDS_PER_CHUNK", 2)
    parts = read_boxes(records, Kind.RESULTS)
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(parts, field.name), getattr(whole, field.name))
    records["d"][0]["size"] = None
    with pytest.raises(DataError, match="sample 'd', record 0: size"):
        read_boxes(records, Kind.RESULTS)


@pytest.mark.parametrize(("field", "bad"), [("num_pts", 1.5), ("num_pts", "1"), ("ego_translation", [0, NAN, 0])])
def test_a_malformed_optional_field_is_named(field: str, bad: Any, make_record: Any) -> None:
    with pytest.raises(DataError, match=f"^ground truth: sample 'a', record 0: {field} must be"):
        read_boxes({"a": [make_record(**{field: bad})]}, Kind.GROUND_TRUTH)


def test_infinite_velocity_is_refused_in_ground_truth_too(make_record: Any) -> None:
    with pytest.raises(DataError, match="velocity must be finite"):
        read_boxes({"a": [make_record(velocity=[INF, NAN])]}, Kind.GROUND_TRUTH)


def test_lists_of_objects_are_required() -> None:
    with pytest.raises(DataError, match="results: sample 'a' must hold a list of records, got dict"):
        read_boxes({"a": {}}, Kind.RESULTS)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="sample 'a', record 0: a record must be an object, got str"):
        read_boxes({"a": ["car"]}, Kind.RESULTS)  # type: ignore[list-item]
