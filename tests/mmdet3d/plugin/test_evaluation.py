"""A student that detects: mmdet3d's test loop and metric against our own pipeline and evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.source import open_split
from bevkd_deploy.data.synthetic import Profile, write_dataset
from bevkd_deploy.evaluation.config import detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate_records
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.accuracy import detect, ground_truth, score, submission_of
from bevkd_deploy.pipelines.data_tools import export_infos
from bevkd_deploy.pipelines.torch_detector import TorchDetector

from .conftest import EXAMPLES, REPOSITORY, environment
from .test_training import run_tool

WEIGHTS = REPOSITORY / "recipes" / "checkpoints" / "quickstart_teacher.safetensors"

#: As the quickstart's, which the weights were trained on; six frames are enough to tell numbers apart.
PROFILE = Profile("six_frames", (396, 704), 6, 540, 45.0, 42.0, 0)


@dataclass
class Both:
    """What mmdet3d and bevkd found with the same weights on the same frames."""

    samples: list[Sample]
    metrics: dict[str, float]
    records: dict[str, list[dict[str, Any]]]
    ours: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def both(mmdet3d: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("evaluation")
    root = write_dataset(folder / "world", profile=PROFILE, train_scenes=1, val_scenes=1, seed=2)
    console = Console(quiet=True)
    export_infos(root, "v1.0-trainval", root, sweeps=0, console=console)
    content = yaml.safe_load((REPOSITORY / "recipes" / "quickstart.yaml").read_text())
    content["student"]["model"] = content["teacher"]["model"]
    content["data"] = {"source": "nuscenes", "root": str(root)}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    with environment(recipe, root) as variables:
        options = [f"test_evaluator.jsonfile_prefix={folder / 'found'}"]
        run_tool(
            mmdet3d, "test.py", str(EXAMPLES / "student.py"), f"bevkd:{WEIGHTS}", "--work-dir", str(folder / "work"),
            "--cfg-options", *options, environment=variables, folder=folder,
        )  # fmt: skip
    (metrics,) = (folder / "work").glob("*/*.json")
    records = json.loads((folder / "found" / "pred_instances_3d" / "results_nusc.json").read_text())["results"]
    loaded = load_recipe(recipe).recipe
    detector = build_detector(loaded.student.model, loaded.student_spec(), 0)
    load_detector(WEIGHTS, detector, loaded.student.model)
    samples = open_split(loaded.data, root, "val")
    found = detect(samples, {"student": (detector.spec, TorchDetector(detector).infer)}, console, "detecting")
    ours = submission_of(samples, found["student"])
    return Both(samples, json.loads(metrics.read_text()), records, ours)


def test_the_same_weights_find_the_same_boxes(both: Both) -> None:
    ranges = detection_cvpr_2019().class_range
    compared = 0
    for token, ours in both.ours.items():
        # mmdet3d leaves out of its file what the evaluation would leave out.
        ours = [box for box in ours if np.hypot(*box["ego_translation"][:2]) <= ranges[box["detection_name"]]]
        theirs = both.records[token]
        assert len(theirs) == len(ours)
        for one, other in zip(ordered(ours), ordered(theirs), strict=True):
            assert one["detection_name"] == other["detection_name"]
            assert one["attribute_name"] == other["attribute_name"]
            for key in ("translation", "size", "velocity", "detection_score"):
                np.testing.assert_allclose(one[key], other[key], atol=2e-4)
            assert abs(np.dot(one["rotation"], other["rotation"])) == pytest.approx(1.0, abs=1e-6)
        compared += len(theirs)
    assert compared > 100


def ordered(boxes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(boxes, key=lambda box: (box["detection_name"], round(box["detection_score"], 5), box["translation"]))


def test_its_metric_is_ours(both: Both) -> None:
    """On our own pipeline's boxes, and on mmdet3d's own."""
    theirs = {name.rpartition("/")[2]: value for name, value in both.metrics.items()}
    assert theirs["mAP"] > 0.1
    truth = ground_truth(both.samples)
    ours = score(both.ours, truth)
    assert ours["mean_ap"] == pytest.approx(theirs["mAP"], abs=1e-6)
    assert ours["nd_score"] == pytest.approx(theirs["NDS"], abs=1e-6)
    for name in CLASS_NAMES:  # mmdet3d reports these with four decimals
        for distance in ("0.5", "1.0", "2.0", "4.0"):
            assert ours["label_aps"][name][float(distance)] == pytest.approx(
                theirs[f"{name}_AP_dist_{distance}"], abs=5.1e-5
            )
    places = {sample.token: sample.ego2global[:3, 3] for sample in both.samples}
    records = {
        token: [{**box, "ego_translation": (np.array(box["translation"]) - places[token]).tolist()} for box in boxes]
        for token, boxes in both.records.items()
    }
    summary = evaluate_records(records, truth.records, bike_racks=truth.bike_racks).summary
    assert summary["mean_ap"] == pytest.approx(theirs["mAP"], abs=1e-6)
    assert summary["nd_score"] == pytest.approx(theirs["NDS"], abs=1e-6)
