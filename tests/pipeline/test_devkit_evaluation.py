"""nuscenes-devkit opens the synthetic world, and its detection evaluation gives the numbers of `bevkd evaluate`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.data.source import open_split
from bevkd_deploy.evaluation.submission import boxes_to_records, write_submission


@pytest.mark.filterwarnings("ignore")
def test_devkit_detection_evaluation_equals_ours(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the devkit and its plots are older than our warning filter
        nuscenes = pytest.importorskip("nuscenes.nuscenes")
        config_factory = pytest.importorskip("nuscenes.eval.common.config").config_factory
        detection_eval = pytest.importorskip("nuscenes.eval.detection.evaluate").DetectionEval
    bevkd("data", "synth", "world", "--profile", "tiny", "--scenes", "1", "--val-scenes", "2", cwd=tmp_path)
    data = DataConfig(source="nuscenes", root="world")
    samples = open_split(data, tmp_path / "world", "val")
    rng = np.random.default_rng(0)
    results: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        boxes = np.nan_to_num(sample.boxes.copy())
        boxes[:, :2] += rng.normal(0, 0.6, (len(boxes), 2))
        boxes[:, 6] += rng.normal(0, 0.3, len(boxes))
        labels = np.where(rng.random(len(boxes)) < 0.1, rng.integers(0, 10, len(boxes)), sample.labels)
        keep = rng.random(len(boxes)) < 0.9
        results[sample.token] = boxes_to_records(
            sample.token, boxes[keep], rng.random(int(keep.sum())), labels[keep], CLASS_NAMES, sample.lidar2global,
            sample.ego2global[:3, 3],
        )  # fmt: skip
    meta = {f"use_{kind}": True for kind in ("camera", "lidar", "radar", "map", "external")}
    write_submission(tmp_path / "results.json", results, meta)
    bevkd("data", "truth", "world", "truth.json", "--split", "val", cwd=tmp_path)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth["meta"]["scenes"] == {sample.token: sample.scene for sample in samples}
    assert set(truth["bike_racks"]) == {sample.token for sample in samples}

    tables = nuscenes.NuScenes(version=data.version, dataroot=str(tmp_path / "world"), verbose=False)
    official = detection_eval(
        tables, config_factory("detection_cvpr_2019"), str(tmp_path / "results.json"), "val", str(tmp_path / "devkit"),
        verbose=False,
    ).main(plot_examples=0, render_curves=False)  # fmt: skip
    bevkd("evaluate", "results.json", "--ground-truth", "truth.json", "--json", "ours.json", cwd=tmp_path)
    ours = json.loads((tmp_path / "ours.json").read_text())
    assert 0.1 < ours["mean_ap"] < 0.9
    assert ours["filters"] == {"class_range": True, "num_pts": True, "bike_racks": True}
    for key in ("label_aps", "mean_dist_aps", "mean_ap", "label_tp_errors", "tp_errors", "tp_scores", "nd_score"):
        _assert_close(ours[key], json.loads(json.dumps(official[key])), key)


def _assert_close(got: Any, expected: Any, where: str) -> None:
    """Numbers to 1e-9; what the devkit gives as NaN is null in our file."""
    if isinstance(expected, dict):
        assert set(got) == set(expected), where
        for key in expected:
            _assert_close(got[key], expected[key], f"{where}.{key}")
    else:
        got = np.nan if got is None else got
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9, equal_nan=True, err_msg=where)
