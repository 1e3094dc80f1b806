"""Cycles inside bicycle racks are dropped exactly where the devkit drops them."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.metrics import evaluate
from bevkd_deploy.evaluation.racks import outside_racks
from bevkd_deploy.evaluation.records import Kind, read_boxes

HALF = float(np.sqrt(0.5))
RACK = {"translation": [10.0, 0.0, 1.0], "size": [2.0, 6.0, 2.0], "rotation": [1.0, 0.0, 0.0, 0.0]}
TURNED = {**RACK, "rotation": [HALF, 0.0, 0.0, HALF]}
devkit = pytest.mark.skipif(importlib.util.find_spec("nuscenes") is None, reason="nuscenes-devkit is not installed")


def _outside(records: dict[str, Any], racks: Any) -> list[bool]:
    return outside_racks(read_boxes(records, Kind.GROUND_TRUTH), racks).tolist()


class _Tables:
    """The rows that the devkit's filter looks up."""

    def __init__(self, racks: dict[str, list[dict[str, Any]]]) -> None:
        self.racks = racks

    def get(self, table: str, token: str) -> dict[str, Any]:
        if table == "sample":
            return {"anns": [f"{token}/{index}" for index in range(len(self.racks.get(token, ())))]}
        sample, index = token.split("/")
        return {"category_name": "static_object.bicycle_rack", **self.racks[sample][int(index)]}


def _devkit_outside(records: dict[str, Any], racks: dict[str, Any]) -> list[bool]:
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import filter_eval_boxes
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes = EvalBoxes.deserialize(copy.deepcopy(records), DetectionBox)
    for box in boxes.all:
        box.ego_translation = (0.0, 0.0, 0.0)
    before = [(token, box) for token in boxes.sample_tokens for box in boxes[token]]
    reach = dict.fromkeys(("car", "bicycle", "motorcycle"), 50)
    kept = {id(box) for box in filter_eval_boxes(_Tables(racks), boxes, reach).all}
    return [id(box) in kept for _, box in before]


def test_only_cycles_inside_are_dropped(make_record: Any) -> None:
    records = {
        "a": [
            make_record("a", (10.0, 0.0), detection_name="bicycle"),
            make_record("a", (13.0, 0.0), detection_name="motorcycle"),  # on the surface
            make_record("a", (13.1, 0.0), detection_name="motorcycle"),
            make_record("a", (10.0, 0.0)),
            make_record("a", (10.0, 0.0), translation=[10.0, 0.0, 2.5], detection_name="bicycle"),  # above
        ],
        "b": [make_record("b", (10.0, 0.0), detection_name="bicycle")],
    }
    assert _outside(records, {"a": [RACK]}) == [False, False, True, True, True, True]
    assert _outside(records, {"a": [TURNED], "b": []})[:2] == [False, True]  # its length now runs along y
    assert _outside(records, {}) == [True] * 6


def test_both_sides_are_filtered_and_the_summary_says_so(make_record: Any) -> None:
    truth = {"a": [make_record("a", (x, 0.0), detection_name="bicycle") for x in (10.0, 30.0)]}
    found = {"a": [make_record("a", (x, 0.0), detection_name="bicycle") for x in (30.0, 12.0)]}
    assert evaluate(found, truth)["filters"]["bike_racks"] is False
    assert evaluate(found, truth)["mean_dist_aps"]["bicycle"] < 0.6
    filtered = evaluate(found, truth, bike_racks={"a": [RACK]})
    assert filtered["filters"]["bike_racks"] is True
    assert filtered["mean_dist_aps"]["bicycle"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": [1, 0, 1]}, "size .* must be positive metres"),
        ({"rotation": [0, 0, 0, 0]}, "rotation must be a quaternion"),
        ({"translation": [0, float("nan"), 0]}, "translation must be 3 finite numbers"),
        ({"translation": "abc"}, "translation must be 3 numbers"),
        ({"size": None}, "size must be 3"),
    ],
)
def test_a_malformed_rack_is_named(bad: Any, message: str, make_record: Any) -> None:
    with pytest.raises(DataError, match=rf"bike_racks of sample 'a', rack 1: {message}"):
        _outside({"a": [make_record("a")]}, {"a": [RACK, {**RACK, **bad}]})
    with pytest.raises(DataError, match="rack 0: a rack must be an object"):
        _outside({"a": []}, {"a": ["rack"]})


_PLACES = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0, 3.0000000001])
_UNITS = st.sampled_from([(1.0, 0, 0, 0), (HALF, 0, 0, HALF), (0.6, 0, 0, 0.8), (0.9, 0.1, -0.2, 0.3), (0, 0, 0, -2.0)])


@devkit
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    racks=st.lists(st.tuples(_PLACES, _PLACES, st.sampled_from([0.5, 2.0, 6.0]), _UNITS), max_size=3),
    cycles=st.lists(
        st.tuples(_PLACES, _PLACES, _PLACES, st.sampled_from(["bicycle", "motorcycle", "car"])), min_size=1, max_size=8
    ),
)
def test_equal_to_the_devkit_on_grids(racks: Any, cycles: Any, make_record: Any) -> None:
    """Coordinates repeat, so centres lie on surfaces, edges and corners of turned racks."""
    records = {
        "a": [
            make_record("a", translation=[600 + x, 1600 + y, z], detection_name=name, attribute_name="")
            for x, y, z, name in cycles
        ]
    }
    placed = {
        "a": [
            {"translation": [600 + x, 1600 + y, 0.0], "size": [2.0, side, 2.0], "rotation": list(rotation)}
            for x, y, side, rotation in racks
        ]
    }
    assert _outside(records, placed) == _devkit_outside(records, placed)


@devkit
def test_equal_to_the_devkit_on_the_surface(make_record: Any) -> None:
    """The last bit alone decides here, and it depends on the order of operations."""
    rng = np.random.default_rng(0)
    from pyquaternion import Quaternion

    records: dict[str, Any] = {}
    racks: dict[str, Any] = {}
    for index in range(300):
        token = f"s{index}"
        rotation = rng.normal(size=4)
        center, size = rng.uniform(-1000, 1000, 3), rng.uniform(0.5, 8, 3)
        racks[token] = [{"translation": center.tolist(), "size": size.tolist(), "rotation": rotation.tolist()}]
        corner = size[[1, 0, 2]] / 2 * rng.choice([-1, 1], 3)
        corner[rng.integers(3)] *= rng.choice([0, 1, 0.3])
        point = center + Quaternion(rotation).rotation_matrix @ corner
        records[token] = [make_record(token, translation=point.tolist(), detection_name="bicycle")]
    ours, theirs = _outside(records, racks), _devkit_outside(records, racks)
    assert ours == theirs
    assert 30 < sum(ours) < 270
