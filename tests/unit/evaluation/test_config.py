from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.evaluation.config import DetectionConfig, detection_cvpr_2019


def test_official_config_covers_the_ten_classes_and_survives_json() -> None:
    config = detection_cvpr_2019()
    assert set(config.class_names) == set(CLASS_NAMES)
    assert DetectionConfig.from_dict(json.loads(json.dumps(config.serialize()))) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_range", {"cars": 50}, "class_range needs one or more of"),
        ("class_range", {}, "class_range needs one or more of"),
        ("class_range", {"car": 0}, "class_range needs positive metres"),
        ("dist_ths", (), "dist_ths needs one or more"),
        ("dist_ths", (2.0, -1.0), "dist_ths needs one or more positive metres"),
        ("dist_ths", (2.0, 2.0), "dist_ths must differ"),
        ("dist_th_tp", 3.0, r"dist_th_tp must be one of dist_ths \[0.5, 1.0, 2.0, 4.0\], got 3.0"),
        ("min_recall", 0.995, r"min_recall must be in \[0, 0.995\), got 0.995"),
        ("min_recall", -0.1, "min_recall"),
        ("min_precision", 1.0, "min_precision"),
        ("min_precision", float("nan"), "min_precision"),
        ("min_precision", "0.1", "min_precision must be in .*, got '0.1'"),
        ("max_boxes_per_sample", 2.5, "max_boxes_per_sample must be a positive integer"),
        ("max_boxes_per_sample", True, "max_boxes_per_sample"),
        ("mean_ap_weight", -1, "mean_ap_weight"),
        ("dist_fcn", "iou", "dist_fcn must be 'center_distance', got 'iou'"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(detection_cvpr_2019(), **{field: value})


def test_all_problems_come_at_once() -> None:
    with pytest.raises(UsageError, match=r"min_recall.*; .*min_precision"):
        replace(detection_cvpr_2019(), min_recall=2.0, min_precision=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dist_th": 1.0}, r"unknown keys \['dist_th'\]"),
        ({"min_recall": None}, r"missing keys \['min_recall'\]"),
        ({"class_range": [50]}, "class_range must map"),
        ({"dist_ths": 2.0}, "dist_ths must be a list"),
    ],
)
def test_from_dict_refuses_other_keys_and_shapes(change: dict[str, Any], message: str) -> None:
    content = {**detection_cvpr_2019().serialize(), **change}
    with pytest.raises(UsageError, match=message):
        DetectionConfig.from_dict({key: value for key, value in content.items() if value is not None})


def test_config_does_not_follow_the_dict_it_was_made_from() -> None:
    ranges: dict[str, float] = {"car": 50.0}
    config = replace(detection_cvpr_2019(), class_range=ranges)
    ranges["car"] = 1.0
    assert config.class_range == {"car": 50.0}
