from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.config import DetectionConfig, detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate, evaluate_records


def _one_class(name: str = "car") -> DetectionConfig:
    return replace(detection_cvpr_2019(), class_range={name: 50}, dist_ths=(2.0,))


def test_figures_computed_by_hand(make_record: Any) -> None:
    """Two cars, found at ranks 1 (0.5 m off) and 3 (1 m off, turned by 90 degrees, twice as long), rank 2 is false."""
    truth = {"a": [make_record(xy=(0, 0)), make_record(xy=(10, 0), velocity=[1.0, 0.0])]}
    half = np.sqrt(0.5)
    results = {
        "a": [
            make_record(xy=(0, 0.5), detection_score=0.9),
            make_record(xy=(30, 0), detection_score=0.8),
            make_record(
                xy=(10, 1),
                detection_score=0.7,
                size=[2.0, 8.0, 1.5],
                rotation=[half, 0, 0, half],
                velocity=[1.0, 2.0],
                attribute_name="vehicle.moving",
            ),
        ]
    }
    scored = evaluate_records(results, truth, _one_class())
    summary, curves = scored.summary, scored.curves
    # Precision is 1 below recall 0.5, 1/2 at 0.5, and rises to 2/3 at 1; recalls 0.11 to 1 count, less 0.1.
    area = 39 * 0.9 + sum(0.4 + (2 / 3 - 1 / 2) * step / 50 for step in range(51))
    assert summary["mean_ap"] == pytest.approx(area / 90 / 0.9, abs=1e-12)
    assert summary["label_aps"] == {"car": {2.0: summary["mean_ap"]}}
    # Errors are running means over the two matches, read at the confidence of each recall: e1 at 0.9 (recall below
    # 0.5), halfway to the mean (e1 + e2) / 2 at 0.8 (recall 0.5), all the way at 0.7 (recall 1).
    for metric, (first, second) in {
        "trans_err": (0.5, 1.0),
        "scale_err": (0.0, 0.5),
        "orient_err": (0.0, np.pi / 2),
        "vel_err": (0.0, 2.0),
        "attr_err": (0.0, 1.0),
    }.items():
        mean = (first + second) / 2
        error = 39 * first + sum(first + (mean - first) * (0.5 + 0.5 * step / 50) for step in range(51))
        assert summary["tp_errors"][metric] == pytest.approx(error / 90, abs=1e-12)
        assert summary["tp_scores"][metric] == pytest.approx(1 - error / 90, abs=1e-12)
    assert summary["nd_score"] == pytest.approx((5 * area / 81 + sum(summary["tp_scores"].values())) / 10, abs=1e-12)
    assert curves["car"].precision[2.0][[0, 50, 100]] == pytest.approx([1, 1 / 2, 2 / 3])
    assert curves["car"].confidence[2.0][[0, 50, 100]] == pytest.approx([0.9, 0.8, 0.7])
    assert (curves["car"].predictions, curves["car"].truths) == (3, 2)


def test_perfect_detections_score_one_and_name_what_is_undefined(make_record: Any) -> None:
    names = list(detection_cvpr_2019().class_names)
    attributes = {"pedestrian": "pedestrian.moving", "traffic_cone": "", "barrier": ""}
    records = [
        make_record(xy=(8.0 * index, 0), detection_name=name, attribute_name=attributes.get(name, "vehicle.parked"))
        for index, name in enumerate(names)
    ]
    summary = evaluate({"a": records}, {"a": records})
    assert summary["mean_ap"] == pytest.approx(1.0) and summary["nd_score"] == pytest.approx(1.0)
    undefined = {
        (name, metric)
        for name, errors in summary["label_tp_errors"].items()
        for metric, error in errors.items()
        if np.isnan(error)
    }
    assert undefined == {
        ("traffic_cone", "attr_err"),
        ("traffic_cone", "vel_err"),
        ("traffic_cone", "orient_err"),
        ("barrier", "attr_err"),
        ("barrier", "vel_err"),
    }


def test_cones_alone_leave_undefined_errors_out_of_the_figures(make_record: Any) -> None:
    records = [make_record(detection_name="traffic_cone", attribute_name="")]
    summary = evaluate({"a": records}, {"a": records}, _one_class("traffic_cone"))
    assert np.isnan(summary["tp_errors"]["vel_err"]) and summary["tp_scores"]["vel_err"] == 0
    assert summary["tp_scores"]["trans_err"] == 1


def test_class_range_filters_only_if_both_sides_say_where_the_ego_vehicle_is(make_record: Any) -> None:
    near = {"ego_translation": [29.0, 0.0, 0.0]}
    far = {"ego_translation": [30.0, 40.0, 0.0]}  # 50 m away: out, since the limit itself is
    truth = [make_record(xy=(0, 0), **near), make_record(xy=(9, 0), **far)]
    found = [make_record(xy=(0, 0), **near)]
    both = evaluate({"a": found}, {"a": truth}, _one_class())
    assert both["filters"] == {"class_range": True, "num_pts": False, "bike_racks": False}
    assert both["mean_ap"] == pytest.approx(1.0)
    without = [make_record(xy=(0, 0))]
    one = evaluate({"a": without}, {"a": truth}, _one_class())
    assert one["filters"]["class_range"] is False
    assert one["mean_ap"] == pytest.approx(39 / 90 + 1 / 90, abs=1e-12)  # recall stops at one half
    other = evaluate({"a": [*found, make_record(xy=(30, 0), **far)]}, {"a": without}, _one_class())
    assert other["filters"]["class_range"] is False


def test_ground_truth_without_points_is_dropped(make_record: Any) -> None:
    truth = [make_record(xy=(0, 0), num_pts=1), make_record(xy=(9, 0), num_pts=0)]
    summary = evaluate({"a": [make_record()]}, {"a": truth}, _one_class())
    assert summary["filters"] == {"class_range": False, "num_pts": True, "bike_racks": False}
    assert summary["mean_ap"] == pytest.approx(1.0)


def test_boxes_of_classes_outside_the_config_do_not_count(make_record: Any) -> None:
    car, bus = make_record(), make_record(detection_name="bus")
    summary = evaluate({"a": [car, bus]}, {"a": [car]}, _one_class())
    assert list(summary["mean_dist_aps"]) == ["car"] and summary["mean_ap"] == pytest.approx(1.0)


def test_different_samples_are_named(make_record: Any) -> None:
    with pytest.raises(
        DataError, match=r"1 missing from the results \(b\), 6 not in the ground truth \(c, d, .*\.\.\.\)"
    ):
        evaluate({"a": [], **{token: [] for token in "cdefgh"}}, {"a": [make_record()], "b": []})
    with pytest.raises(DataError, match=r"1 missing from the results \(b\), 0 not in the ground truth;"):
        evaluate({"a": []}, {"a": [], "b": []})
    with pytest.raises(DataError, match=r"0 missing from the results, 1 not in the ground truth \(b\)"):
        evaluate({"a": [], "b": []}, {"a": []})
    with pytest.raises(DataError, match="no samples"):
        evaluate({}, {})


def test_more_boxes_than_allowed_are_refused(make_record: Any) -> None:
    config = replace(_one_class(), max_boxes_per_sample=2)
    records = {"a": [make_record("a")] * 2, "b": [make_record("b")] * 3}
    with pytest.raises(DataError, match="sample 'b' holds 3 boxes, the limit is 2"):
        evaluate(records, records, config)
    assert evaluate({"a": records["a"]}, {"a": [*records["a"], make_record()]}, config)["mean_ap"] > 0
