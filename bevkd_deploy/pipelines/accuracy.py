"""mAP and NDS of any network or engine on a split, through the shipped preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_image, load_points
from bevkd_deploy.evaluation.config import detection_cvpr_2019
from bevkd_deploy.evaluation.metrics import evaluate
from bevkd_deploy.evaluation.submission import boxes_to_records, nan_to_null
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.pipelines.progress import bar
from bevkd_deploy.runtime.preprocess import Feed, Preprocessor

#: Graph inputs of one frame -> boxes [K, 9], scores [K], labels [K].
Infer = Callable[[Feed], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
Records = dict[str, list[dict[str, Any]]]

#: Detections below this score are not submitted: 500 boxes a frame of noise only slow the matching down.
_MIN_SCORE = 0.02


def sensors_of(sample: Sample, cameras: Sequence[str]) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    """Decoded images in camera order, and points."""
    sizes = dict(zip(sample.calibration.cameras, sample.calibration.image_sizes_px, strict=True))
    return [load_image(sample.image_paths[name], sizes[name]) for name in cameras], load_points(sample.points_path)


def feeds_of(samples: Sequence[Sample], spec: GraphSpec) -> list[Feed]:
    """Graph inputs of some samples."""
    preprocess = Preprocessor(spec)
    return [preprocess(*sensors_of(sample, spec.cameras), sample.calibration) for sample in samples]


def torch_infer(detector: FusionDetector) -> Infer:
    """A detector in PyTorch as an `Infer`."""
    detector.eval()

    @torch.no_grad()
    def infer(feed: Feed) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        maps = detector(**{name: torch.from_numpy(array)[None] for name, array in feed.items()})
        boxes, scores, labels = detector.decode(maps)
        return boxes[0].numpy(), scores[0].numpy(), labels[0].numpy()

    return infer


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


def detect(
    samples: Sequence[Sample], spec: GraphSpec, infers: dict[str, Infer], console: Console, title: str
) -> dict[str, Records]:
    """Detections of several backends on the same frames; each frame is prepared once."""
    preprocess = Preprocessor(spec)
    found: dict[str, Records] = {name: {} for name in infers}
    with bar(console, title, len(samples)) as progress:
        for sample in samples:
            feed = preprocess(*sensors_of(sample, spec.cameras), sample.calibration)
            for name, infer in infers.items():
                boxes, scores, labels = infer(feed)
                keep = scores >= _MIN_SCORE
                found[name][sample.token] = boxes_to_records(
                    sample.token,
                    boxes[keep],
                    scores[keep],
                    labels[keep],
                    spec.classes,
                    sample.lidar2global,
                    sample.ego2global[:3, 3],
                )
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


def accuracy_row(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of `bench.json`: over the classes present, with the ten-class ones beside them."""
    return {
        "mAP": summary["present"]["mean_ap"],
        "NDS": summary["present"]["nd_score"],
        "per_class": summary["mean_dist_aps"],
        "classes_present": summary["present"]["classes"],
        "mAP_ten_classes": summary["mean_ap"],
        "NDS_ten_classes": summary["nd_score"],
    }


def _present_classes(truth: Records, class_range: Any) -> set[str]:
    return {
        record["detection_name"]
        for records in truth.values()
        for record in records
        if record["num_pts"] > 0 and np.hypot(*record["ego_translation"][:2]) < class_range[record["detection_name"]]
    }
