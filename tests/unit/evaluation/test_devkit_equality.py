"""Every figure and every curve equals the official devkit's, run on the same records."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.evaluation.config import DetectionConfig, detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate_records
from bevkd_deploy.evaluation.rankings import TP_METRICS

if importlib.util.find_spec("nuscenes") is None:
    pytest.skip("nuscenes-devkit is not installed", allow_module_level=True)

# Found but not importable means broken: that must fail, not skip.
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.data_classes import DetectionConfig as DevkitConfig
from nuscenes.eval.detection.evaluate import DetectionEval

TOLERANCE = 1e-9
Records = dict[str, list[dict[str, Any]]]
EGO_M = (600.0, 1600.0, 0.0)
ATTRIBUTES = ("", "vehicle.moving", "vehicle.parked", "pedestrian.moving", "cycle.with_rider")


class _Tables:
    """The few rows that the devkit's filters look up: every sample has one ego pose and no bicycle racks."""

    def get(self, table: str, token: str) -> dict[str, Any]:
        if table == "sample":
            return {"data": {"LIDAR_TOP": token}, "anns": []}
        return {"ego_pose_token": token} if table == "sample_data" else {"translation": EGO_M}


def _devkit(results: Records, ground_truth: Records, config: DetectionConfig, filtered: bool) -> tuple[Any, Any]:
    """Metrics and curves of the devkit, with its own loading, distance and filter code."""
    sides = []
    for records in (results, ground_truth):
        boxes = EvalBoxes.deserialize(copy.deepcopy(records), DetectionBox)
        if filtered and boxes.all:
            boxes = filter_eval_boxes(_Tables(), add_center_dist(_Tables(), boxes), config.class_range)
        sides.append(boxes)
    devkit = DetectionEval.__new__(DetectionEval)  # its constructor wants a dataset on disk
    devkit.cfg = DevkitConfig.deserialize(config.serialize())
    devkit.verbose = False
    devkit.pred_boxes, devkit.gt_boxes = sides
    metrics, curves = devkit.evaluate()
    return metrics.serialize(), curves


def _assert_close(got: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert list(got) == list(expected), where
        for key in expected:
            _assert_close(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, str, int)):
        assert got == expected, where
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, equal_nan=True, err_msg=where)


def _assert_equal_to_devkit(
    results: Records, ground_truth: Records, config: DetectionConfig | None = None, filtered: bool = True
) -> dict[str, Any]:
    config = config or detection_cvpr_2019()
    expected, expected_curves = _devkit(results, ground_truth, config, filtered)
    scored = evaluate_records(results, ground_truth, config)
    summary, curves = scored.summary, scored.curves
    assert set(summary) == set(expected) - {"eval_time"} | {"filters"}
    for key in set(summary) - {"filters"}:
        _assert_close(summary[key], expected[key], key)
    for name in config.class_names:
        for distance_m in config.dist_ths:
            reference = expected_curves[(name, distance_m)]
            _assert_close(curves[name].recall, reference.recall, name)
            _assert_close(curves[name].precision[distance_m], reference.precision, f"{name} precision {distance_m}")
            _assert_close(curves[name].confidence[distance_m], reference.confidence, f"{name} confidence {distance_m}")
        for metric in TP_METRICS:
            reference = getattr(expected_curves[(name, config.dist_th_tp)], metric)
            _assert_close(curves[name].tp_errors[metric], reference, f"{name} {metric}")
    return summary


def _record(
    token: str, name: str, xy: tuple[float, float], score: float | None = None, **fields: Any
) -> dict[str, Any]:
    translation = [EGO_M[0] + xy[0], EGO_M[1] + xy[1], 1.0]
    record = {
        "sample_token": token,
        "translation": translation,
        "size": [2.0, 4.5, 1.6],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "ego_translation": [a - b for a, b in zip(translation, EGO_M, strict=True)],
        "detection_name": name,
        "attribute_name": "",
        **fields,
    }
    return record if score is None else {**record, "detection_score": score}


def _random_scene(rng: np.random.Generator, samples: int, per_sample: int, classes: tuple[str, ...]) -> tuple[Any, Any]:
    """Ground truth over the class ranges and noisy detections of it, with duplicates, misses and false ones."""

    def fields(size: Any) -> dict[str, Any]:
        yaw = rng.uniform(-np.pi, np.pi)
        rotation = np.array([np.cos(yaw / 2), *rng.normal(0, 0.02, 2), np.sin(yaw / 2)]) * rng.uniform(0.5, 2)
        return {
            "size": [float(side) for side in size],
            "rotation": rotation.tolist(),
            "velocity": rng.normal(0, 3, 2).tolist(),
            "attribute_name": ATTRIBUTES[rng.integers(len(ATTRIBUTES))],
        }

    def record(token: str, name: str, xy: Any, score: float | None, **fields: Any) -> dict[str, Any]:
        made = _record(token, name, tuple(xy), score, **fields)
        made["translation"][2] = rng.normal()  # the metrics look at the ground plane alone
        return made

    results: Records = {}
    ground_truth: Records = {}
    for index in range(samples):
        token = f"sample-{index}"
        results[token], ground_truth[token] = [], []
        for _ in range(per_sample):
            name = classes[rng.integers(len(classes))]
            xy = rng.uniform(-42, 42, 2)
            points = int(rng.integers(0, 5))
            truth = record(token, name, xy, None, num_pts=points, **fields(rng.uniform(0.5, 5, 3)))
            if rng.random() < 0.2:
                truth["velocity"] = [math.nan, math.nan]
            ground_truth[token].append(truth)
            for _ in range(rng.integers(0, 4)):
                near = xy + rng.normal(0, 1.5, 2)
                size = np.array(truth["size"]) * rng.uniform(0.7, 1.4, 3)
                score = float(rng.choice([rng.random(), rng.integers(0, 5) / 4]))
                results[token].append(record(token, name, near, score, **fields(size)))
    shuffled = list(ground_truth)
    rng.shuffle(shuffled)
    return results, {token: ground_truth[token] for token in shuffled}


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_random_scenes(seed: int, filtered: bool) -> None:
    rng = np.random.default_rng(seed)
    classes = CLASS_NAMES if seed % 2 else ("pedestrian", "barrier")
    results, ground_truth = _random_scene(rng, samples=8, per_sample=25, classes=classes)
    if not filtered:
        for records in (results, ground_truth):
            for listed in records.values():
                for record in listed:
                    record.pop("ego_translation")
                    record.pop("num_pts", None)
    summary = _assert_equal_to_devkit(results, ground_truth, filtered=filtered)
    assert summary["filters"] == {"class_range": filtered, "num_pts": filtered, "bike_racks": False}
    assert summary["mean_ap"] > 0.02


def test_other_settings() -> None:
    results, ground_truth = _random_scene(np.random.default_rng(7), samples=6, per_sample=20, classes=CLASS_NAMES[:3])
    config = replace(
        detection_cvpr_2019(),
        class_range={name: 20 + index for index, name in enumerate(CLASS_NAMES)},
        dist_ths=(3.0, 0.25, 1.5),
        dist_th_tp=3.0,
        min_recall=0.25,
        min_precision=0.0,
        mean_ap_weight=3,
    )
    _assert_equal_to_devkit(results, ground_truth, config)


def test_official_settings() -> None:
    assert detection_cvpr_2019().serialize() == config_factory("detection_cvpr_2019").serialize()


# Positions a tenth of a metre apart, few scores and few samples: ties, duplicates and exact thresholds abound.
_STEPS = st.sampled_from([0.0, 0.1, 0.3, 0.4, 0.5, 0.8, 1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0])
_NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, math.nan])


@st.composite
def _boxes(draw: st.DrawFn, predicted: bool) -> Records:
    records: Records = {"a": [], "b": [], "c": []}
    for _ in range(draw(st.integers(0, 9))):
        token = draw(st.sampled_from("abc"))
        name = draw(st.sampled_from(["car", "barrier", "traffic_cone"]))
        fields: dict[str, Any] = {
            "attribute_name": draw(st.sampled_from(ATTRIBUTES[:3])),
            "rotation": [1.0, 0.0, 0.0, draw(st.sampled_from([0.0, 1.0, -0.5]))],
            "velocity": [draw(_NUMBERS.filter(lambda value: not (predicted and math.isnan(value)))), 0.0],
        }
        if not predicted:
            fields["num_pts"] = draw(st.integers(0, 2))
        score = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])) if predicted else None
        records[token].append(_record(token, name, (draw(_STEPS), draw(_STEPS)), score, **fields))
    return records


@settings(max_examples=150, deadline=None, derandomize=True)
@given(results=_boxes(predicted=True), ground_truth=_boxes(predicted=False))
def test_crowded_grids(results: Records, ground_truth: Records) -> None:
    _assert_equal_to_devkit(results, ground_truth)


@st.composite
def _configs(draw: st.DrawFn) -> DetectionConfig:
    distances = draw(st.lists(st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.6, 4.0]), min_size=1, max_size=4, unique=True))
    return DetectionConfig(
        class_range=dict.fromkeys(CLASS_NAMES, draw(st.sampled_from([1.0, 2.4, 50.0]))),
        dist_ths=tuple(distances),
        dist_th_tp=draw(st.sampled_from(distances)),
        min_recall=draw(st.sampled_from([0.0, 0.1, 0.5, 0.98])),
        min_precision=draw(st.sampled_from([0.0, 0.1, 0.9])),
        max_boxes_per_sample=500,
        mean_ap_weight=draw(st.integers(0, 7)),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(results=_boxes(predicted=True), ground_truth=_boxes(predicted=False), config=_configs())
def test_crowded_grids_with_other_settings(results: Records, ground_truth: Records, config: DetectionConfig) -> None:
    _assert_equal_to_devkit(results, ground_truth, config)


@pytest.mark.parametrize("seed", range(10))
def test_crowds_of_equal_scores_and_places(seed: int) -> None:
    """Dozens of detections within reach of dozens of objects: long chains of who takes what."""
    rng = np.random.default_rng(seed)
    sides: list[Records] = []
    for predicted in (True, False):
        records: Records = {"a": [], "b": []}
        for _ in range(60):
            token, name = rng.choice(["a", "b"]), str(rng.choice(["car", "barrier"]))
            xy = tuple(float(value) / 2 for value in rng.integers(0, 9, 2))
            score = float(rng.integers(0, 5)) / 4 if predicted else None
            records[token].append(_record(str(token), name, xy, score, attribute_name="vehicle.moving"))
        sides.append(records)
    summary = _assert_equal_to_devkit(*sides)
    assert summary["mean_ap"] > 0.03


def _cars(*boxes: tuple[Any, ...], **fields: Any) -> Records:
    """Records of cars in sample "a": (x, y) for ground truth, (x, y, score) for predictions."""
    return {"a": [_record("a", "car", box[:2], *box[2:], **fields) for box in boxes]}


def _line(count: int, **fields: Any) -> Records:
    return _cars(*[(6.0 * index - 40.0, 0.0) for index in range(count)], **fields)


CASES: dict[str, Callable[[], tuple[Records, Records]]] = {
    "nothing at all": lambda: ({"a": []}, {"a": []}),
    "no predictions": lambda: ({"a": []}, _cars((0, 0))),
    "no ground truth": lambda: (_cars((0, 0, 0.5)), {"a": []}),
    "ground truth without points only": lambda: (_cars((0, 0, 0.5)), _cars((0, 0), num_pts=0)),
    "predictions out of range only": lambda: (_cars((50.0, 0, 0.5)), _cars((0, 0))),
    "a range reached exactly": lambda: (_cars((30, 40, 0.5), (29.9, 40, 0.4)), _cars((30, 40), (29.9, 40))),
    "no match": lambda: (_cars((20, 0, 0.5)), _cars((0, 0))),
    "matches past the error threshold only": lambda: (_cars((3, 0, 0.5)), _cars((0, 0))),
    "recall below the minimum": lambda: (_cars((-40, 0, 0.5)), _line(12)),
    "recall at the minimum": lambda: (_cars((-40, 0, 0.5)), _line(10)),
    "recall just above the minimum": lambda: (_cars((-40, 0, 0.5)), _line(9)),
    "thresholds reached exactly": lambda: (
        _cars((-39.5, 0, 0.9), (-33, 0, 0.8), (-26, 0, 0.7), (-18, 0, 0.6)),
        _line(4),
    ),
    "equal scores take the later prediction first": lambda: (_cars((0.4, 0, 0.5), (0.2, 0, 0.5)), _cars((0, 0))),
    "equal distances take the earlier truth": lambda: (
        _cars((0, 0, 0.9), (0, 1, 0.8)),
        {"a": _cars((1, 0))["a"] + _cars((-1, 0), size=[1.0, 1.0, 1.0])["a"]},
    ),
    "a truth taken by a better prediction": lambda: (_cars((0.1, 0, 0.4), (0.3, 0, 0.9)), _cars((0, 0), (3, 0))),
    "duplicates": lambda: (_cars(*[(0, 0, 0.5)] * 4, (0, 0, 0.7)), _cars((0, 0), (0, 0))),
    "all scores zero": lambda: (_cars((-40, 0, 0.0), (-34, 0, 0.0)), _line(2)),
    "lowest match at score zero": lambda: (_cars((-40, 0, 0.5), (-34, 0, 0.5), (-28, 0, 0.0)), _line(4)),
    "negative zero score": lambda: (_cars((-40, 0, -0.0), (-40, 1, 0.0)), _line(2)),
    "scores above one": lambda: (_cars((-40, 0, 7.0), (-34, 0, 0.5)), _line(2)),
    "velocity never known": lambda: (_cars((-40, 0, 0.5), (-34, 0, 0.4)), _line(2, velocity=[math.nan, math.nan])),
    "velocity half known": lambda: (_cars((-40, 0, 0.5), (-34, 0, 0.4)), _line(2, velocity=[math.nan, 1.0])),
    "velocity and attribute unknown for the first match": lambda: (
        _cars((0, 0, 0.9), (9, 0, 0.8), (18, 0, 0.7), velocity=[1.0, 1.0], attribute_name="vehicle.moving"),
        {
            "a": _cars((0, 0), velocity=[math.nan, math.nan])["a"]
            + _cars((9, 0), (18, 0), attribute_name="vehicle.parked")["a"]
        },
    ),
    "attribute of a detection missing": lambda: (_cars((0, 0, 0.9)), _cars((0, 0), attribute_name="vehicle.parked")),
    "predictions that carry points": lambda: (
        {"a": _cars((0, 0, 0.9), num_pts=0)["a"] + _cars((9, 0, 0.8), num_pts=1)["a"]},
        _cars((0, 0), (9, 0)),
    ),
    "barriers the other way round": lambda: (
        {"a": [_record("a", "barrier", (0, 0), 0.9, rotation=[0.0, 0.0, 0.0, 1.0])]},
        {"a": [_record("a", "barrier", (0, 0))]},
    ),
    "cars the other way round": lambda: (_cars((0, 0, 0.9), rotation=[0.0, 0.0, 0.0, -1.0]), _cars((0, 0))),
    "ties between samples, listed in another order": lambda: (
        {
            "b": [_record("b", "car", (0, 0), 0.5), _record("b", "car", (9, 0), 0.5)],
            "a": _cars((0.5, 0, 0.5), (30, 0, 0.5))["a"],
        },
        {"a": _cars((0, 0))["a"], "b": [_record("b", "car", (0, 0))]},
    ),
    "the same place in another sample": lambda: (
        {"a": _cars((0, 0, 0.9))["a"], "b": []},
        {"a": [], "b": [_record("b", "car", (0, 0))]},
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_awkward_cases(case: str) -> None:
    results, ground_truth = CASES[case]()
    _assert_equal_to_devkit(results, ground_truth)


def test_distances_round_as_the_devkit_rounds_them() -> None:
    """The last bit alone decides on which side of the threshold these lie, and it depends on how they are computed."""
    rng = np.random.default_rng(3)
    results: Records = {}
    ground_truth: Records = {}
    for index in range(200):
        token = f"sample-{index}"
        radius_m, dx = rng.choice([0.5, 1.0, 2.0, 4.0]), rng.uniform(0, 0.5)
        dy = float(np.sqrt(radius_m**2 - dx**2))
        ground_truth[token] = [_record(token, "car", (0, 0), translation=[0.0, 0.0, 0.0])]
        results[token] = [_record(token, "car", (0, 0), float(rng.random()), translation=[dx, dy, 0.0])]
        for record in (*results[token], *ground_truth[token]):
            record.pop("ego_translation")
    _assert_equal_to_devkit(results, ground_truth, filtered=False)
