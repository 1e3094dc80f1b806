from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.data.samples import GlobalBoxes, Sample
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.frames import pose
from bevkd_deploy.pipelines.accuracy import ground_truth, score
from bevkd_deploy.pipelines.truth import write_truth

TILT = pose([0.99, 0.05, -0.08, 0.1], [3.0, 4.0, 1.8])


def _sample(token: str, *, annotated: bool, racks: bool) -> Sample:
    place = GlobalBoxes(
        translation_m=np.array([[600.1, 1600.2, 1.3]]),
        size_m=np.array([[0.6, 1.7, 1.2]]),
        rotation_wxyz=np.array([[0.7, 0.1, 0.2, 0.7]]),
        velocity_mps=np.array([[1.0, np.nan]]),
    )
    return Sample(
        token=token,
        scene="scene-1",
        timestamp_s=0.0,
        image_paths={},
        points_path=None,
        calibration=Calibration((), np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), ()),
        lidar2ego=TILT,
        ego2global=pose([1, 0, 0, 0], [590.0, 1590.0, 0.0]),
        boxes=np.array([[1.0, 2.0, 0.0, 1.7, 0.6, 1.2, 0.3, 1.0, 0.0]]),
        labels=np.array([5]),
        num_points=np.array([5]),
        attributes=("cycle.without_rider",),
        annotations=place if annotated else None,
        bike_racks=place if racks else None,
    )


def test_annotations_are_taken_as_they_are() -> None:
    (record,) = ground_truth([_sample("a", annotated=True, racks=True)]).records["a"]
    assert record["translation"] == [600.1, 1600.2, 1.3] and record["size"] == [0.6, 1.7, 1.2]
    assert record["rotation"] == [0.7, 0.1, 0.2, 0.7]
    assert record["velocity"][0] == 1 and np.isnan(record["velocity"][1])
    assert record["ego_translation"] == [600.1 - 590.0, 1600.2 - 1590.0, 1.3]
    assert record["num_pts"] == 5 and record["attribute_name"] == "cycle.without_rider"


def test_boxes_of_the_lidar_frame_stand_in_for_annotations() -> None:
    (record,) = ground_truth([_sample("a", annotated=False, racks=True)]).records["a"]
    expected = np.array([590.0, 1590.0, 0.0]) + TILT[:3, :3] @ [1.0, 2.0, 0.0] + TILT[:3, 3]
    assert record["translation"] == pytest.approx(expected.tolist())


def test_racks_are_known_if_they_are_for_every_frame() -> None:
    known, unknown = _sample("a", annotated=True, racks=True), _sample("b", annotated=True, racks=False)
    racks = ground_truth([known]).bike_racks
    assert racks is not None and racks["a"][0]["translation"] == [600.1, 1600.2, 1.3]
    assert ground_truth([known, unknown]).bike_racks is None


def test_a_cycle_in_a_rack_does_not_count_as_present() -> None:
    inside = score({"a": []}, ground_truth([_sample("a", annotated=True, racks=True)]))
    assert inside["present"]["classes"] == [] and inside["filters"]["bike_racks"] is True
    free = score({"a": []}, ground_truth([_sample("a", annotated=True, racks=False)]))
    assert free["present"] == {"classes": ["bicycle"], "mean_ap": 0.0, "nd_score": 0.0}


def test_a_recipe_has_its_own_version_and_two_splits() -> None:
    with pytest.raises(UsageError, match="data.version"):
        write_truth(Path("quickstart"), Path("truth.json"), split="val", version="v1.0-mini")
    with pytest.raises(UsageError, match="splits train and val, got 'mini_val'"):
        write_truth(Path("quickstart"), Path("truth.json"), split="mini_val")
