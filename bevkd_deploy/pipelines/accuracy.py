"""mAP and NDS of any network or engine on a split, through the shipped preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bevkd_deploy.benchmark.result import Accuracy
from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_image, load_sample_points
from bevkd_deploy.evaluation.config import detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate
from bevkd_deploy.evaluation.submission import boxes_to_records, nan_to_null
from bevkd_deploy.pipelines.progress import bar
from bevkd_deploy.runtime.detections import Detections
from bevkd_deploy.runtime.preprocess import Feed, Preprocessor

#: Graph inputs of one frame -> detections.
Infer = Callable[[Feed], Detections]
Records = dict[str, list[dict[str, Any]]]

#: Detections below this score are not submitted: 500 boxes a frame of noise only slow the matching down.
_MIN_SCORE = 0.02


def sensors_of(sample: Sample, cameras: Sequence[str]) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """Decoded images in camera order, and points."""
    sizes = dict(zip(sample.calibration.cameras, sample.calibration.image_sizes_px, strict=True))
    return [load_image(sample.image_paths[name], sizes[name]) for name in cameras], load_sample_points(sample)


def feeds_of(samples: Sequence[Sample], spec: GraphSpec) -> list[Feed]:
    """Graph inputs of some samples."""
    preprocess = Preprocessor(spec)
    return [preprocess(*sensors_of(sample, spec.cameras), sample.calibration) for sample in samples]


def ground_truth(samples: Sequence[Sample]) -> Records:
    """Annotations in the submission format."""
    return {
        sample.token: boxes_to_records(
            sample.token,
            sample.boxes,
            None,
            sample.labels,
            CLASS_NAMES,
            sample.lidar2global,
            sample.ego2global[:3, 3],
            sample.num_points,
            attributes=sample.attributes,
        )
        for sample in samples
    }


def records_of(sample: Sample, detections: Detections) -> list[dict[str, Any]]:
    """Detections of one frame in the submission format."""
    kept = detections.above(_MIN_SCORE)
    return boxes_to_records(
        sample.token,
        kept.boxes.astype(np.float64),
        kept.scores.astype(np.float64),
        kept.labels,
        kept.classes,
        sample.lidar2global,
        sample.ego2global[:3, 3],
    )


def detect(samples: Sequence[Sample], spec: GraphSpec, infer: Infer, console: Console, title: str) -> Records:
    """Detections of one network on some frames, in the submission format."""
    preprocess = Preprocessor(spec)
    found: Records = {}
    with bar(console, title, len(samples)) as progress:
        for sample in samples:
            feed = preprocess(*sensors_of(sample, spec.cameras), sample.calibration)
            found[sample.token] = records_of(sample, infer(feed))
            progress.advance()
    return found


def score(detections: Records, truth: Records) -> dict[str, Any]:
    """nuScenes metrics, JSON-ready.

    The devkit's summary over all ten classes, and under "present" the same over the classes that have ground truth
    after the official filters. On a full split both are equal; on a few frames an absent class would count as AP 0,
    however good the detections are.
    """
    config = detection_cvpr_2019()
    summary = evaluate(detections, truth, config)
    present = _present_classes(truth, config.class_range)
    ranges = {name: radius for name, radius in config.class_range.items() if name in present}
    if len(ranges) < len(config.class_range) and ranges:
        some = evaluate(detections, truth, dataclasses.replace(config, class_range=ranges))
    else:
        some = summary
    summary["present"] = {"classes": sorted(present), "mean_ap": some["mean_ap"], "nd_score": some["nd_score"]}
    result: dict[str, Any] = nan_to_null(summary)
    return result


def accuracy_of(summary: dict[str, Any]) -> Accuracy:
    """The figures of `bench.json` from a summary of `score`."""
    present = summary["present"]["classes"]
    return Accuracy(
        mAP=summary["present"]["mean_ap"],
        NDS=summary["present"]["nd_score"],
        per_class={name: ap if name in present else None for name, ap in summary["mean_dist_aps"].items()},
        mAP_ten_classes=summary["mean_ap"],
        NDS_ten_classes=summary["nd_score"],
    )


def _present_classes(truth: Records, class_range: Any) -> set[str]:
    return {
        record["detection_name"]
        for records in truth.values()
        for record in records
        if record["num_pts"] > 0 and np.hypot(*record["ego_translation"][:2]) < class_range[record["detection_name"]]
    }
