from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.report.evaluation import classes_table, errors_plot, precision_plot, render_evaluation

ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")


@pytest.fixture
def curves() -> dict[str, Any]:
    """A curves file of two classes, one of them without ground truth."""

    def found(truths: int) -> dict[str, Any]:
        falling = np.linspace(1, 0, 101).tolist()
        return {
            "recall": np.linspace(0, 1, 101).tolist(),
            "precision": {"0.5": falling, "2": falling},
            "confidence": {"0.5": falling, "2": falling},
            "tp_errors": dict.fromkeys(ERRORS, falling),
            "predictions": 7,
            "truths": truths,
        }

    errors = {**dict.fromkeys(ERRORS, 0.25), "vel_err": None}
    interval = {"first": 0.5, "second": 0.6, "difference": 0.1, "low": 0.02, "high": 0.2}
    summary = {
        "label_aps": {name: {"0.5": 0.4, "2.0": 0.6} for name in ("car", "traffic_cone")},
        "mean_dist_aps": {"car": 0.5, "traffic_cone": 0.0},
        "mean_ap": 0.25,
        "nd_score": 0.4375,
        "label_tp_errors": {"car": errors, "traffic_cone": errors},
        "tp_errors": errors,
        "filters": {"class_range": True, "num_pts": True, "bike_racks": False},
        "cfg": {"dist_ths": [0.5, 2.0], "dist_th_tp": 2.0, "min_recall": 0.1, "min_precision": 0.1},
        "difference": {
            "figures": {
                "mAP": interval,
                "NDS": {**interval, "low": -0.1},
                "AP car": {**interval, "low": -0.3, "high": -0.1},
            },
            "units": 150, "unit": "scene", "replicates": 1000, "confidence": 0.95, "seed": 3,
        },
    }  # fmt: skip
    return {
        "schema": "bevkd.curves/1",
        "title": "<results>.json",
        "frames": 12,
        "summary": summary,
        "notes": ["a <note>"],
        "classes": {"car": found(30), "traffic_cone": found(0)},
    }


def test_the_page_stands_alone_and_escapes_what_it_shows(curves: dict[str, Any]) -> None:
    page = render_evaluation(curves)
    assert "&lt;results&gt;.json" in page and "a &lt;note&gt;" in page and "<results>" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page) and "<script" not in page
    for words in ("0.2500", "0.4375", "12 frames", "filters on: class range, num pts", "without the filter bike racks"):
        assert words in page
    assert page.count("<svg") == 2


def test_differences_are_judged_by_their_interval(curves: dict[str, Any]) -> None:
    page = render_evaluation(curves)
    rows = {name: re.search(rf"<tr><td>{name}</td>.*?</tr>", page, re.DOTALL) for name in ("mAP", "NDS", "AP car")}
    words = {"mAP": "better", "NDS": "open", "AP car": "worse"}
    assert all(match is not None and words[name] in match.group() for name, match in rows.items())
    assert "over 150 scenes, 1000 draws, seed 3" in page
    del curves["summary"]["difference"]
    assert "Paired bootstrap" not in render_evaluation(curves)


def test_each_class_has_its_row_and_dashes_for_what_it_has_not(curves: dict[str, Any]) -> None:
    table = classes_table(curves)
    assert [column.name for column in table.columns][:6] == [
        "class",
        "truths",
        "detections",
        "AP",
        "AP 0.5 m",
        "AP 2 m",
    ]
    cells = [[cell.text for cell in row] for row in table.rows]
    assert cells[0] == ["car", "30", "7", "0.5000", "0.4000", "0.6000", "0.2500", "0.2500", "0.2500", "–", "0.2500"]
    assert cells[-1][:4] == ["mean", "", "", "0.2500"]


def test_classes_without_ground_truth_are_not_drawn(curves: dict[str, Any]) -> None:
    for plot in (precision_plot(curves), errors_plot(curves)):
        assert ">car" in plot and "traffic cone" not in plot
    curves["classes"]["car"]["truths"] = 0
    assert "<svg" in render_evaluation(curves)


def test_another_schema_is_refused(curves: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"schema 'bevkd.curves/1', got 'other'"):
        render_evaluation({**curves, "schema": "other"})
