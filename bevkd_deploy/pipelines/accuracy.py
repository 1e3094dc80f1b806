"""mAP and NDS of any network or engine on a split, through the shipped preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bevkd_deploy.benchmark.result import Accuracy
from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.dataset import preprocessor_for
from bevkd_deploy.data.events import DropLog
from bevkd_deploy.data.samples import GlobalBoxes, Sample
from bevkd_deploy.data.sensor_files import load_sample
from bevkd_deploy.evaluation.config import DetectionConfig
from bevkd_deploy.evaluation.metrics import evaluate_records, summarize
from bevkd_deploy.evaluation.submission import boxes_to_records, nan_to_null
from bevkd_deploy.pipelines.progress import bar, reported_drops
from bevkd_deploy.runtime.detections import Detections
from bevkd_deploy.runtime.preprocess import Feed, Preprocessor

#: Graph inputs of one frame -> detections.
Infer = Callable[[Feed], Detections]
Records = dict[str, list[dict[str, Any]]]

#: Detections below this score are not submitted: 500 boxes a frame of noise only slow the matching down.
MIN_SCORE = 0.02


def sensors_of(
    sample: Sample, cameras: Sequence[str], drops: DropLog
) -> tuple[list[NDArray[np.uint8] | None], NDArray[np.float32]]:
    """Decoded images in camera order, None for a missing camera, and points; `drops` is told what is left out."""
    sensors = load_sample(sample, cameras)
    drops.add(sensors.dropped)
    return sensors.images, sensors.points


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` frames spread evenly over a split, both ends included."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)
    return [samples[place] for place in np.unique(places)]


def feeds_of(samples: Sequence[Sample], spec: GraphSpec, drops: DropLog) -> list[Feed]:
    """Graph inputs of some samples; `drops` is told which sensors are left out."""
    preprocess = Preprocessor(spec)
    return [preprocess(*sensors_of(sample, spec.cameras, drops), sample.calibration) for sample in samples]


@dataclass(frozen=True)
class GroundTruth:
    """What detections are scored against.

    Attributes:
        records: annotations in the submission format.
        bike_racks: racks of each frame; None where the source does not tell.
    """

    records: Records
    bike_racks: Records | None


def ground_truth(samples: Sequence[Sample]) -> GroundTruth:
    """Ground truth of some frames, exactly as annotated where the source has the annotations."""
    racks = {sample.token: sample.bike_racks for sample in samples}
    known = {token: _place_records(found) for token, found in racks.items() if found is not None}
    return GroundTruth(
        records={sample.token: _truth_records(sample) for sample in samples},
        bike_racks=known if len(known) == len(racks) else None,
    )


def _truth_records(sample: Sample) -> list[dict[str, Any]]:
    ego_translation_m = sample.ego2global[:3, 3]
    if sample.annotations is None:
        return boxes_to_records(
            sample.token,
            sample.boxes,
            None,
            sample.labels,
            CLASS_NAMES,
            sample.lidar2global,
            ego_translation_m,
            sample.num_points,
            attributes=sample.attributes,
        )
    columns = zip(
        _place_records(sample.annotations),
        sample.annotations.velocity_mps.tolist(),
        (sample.annotations.translation_m - ego_translation_m).tolist(),
        sample.labels.tolist(),
        sample.attributes,
        sample.num_points.tolist(),
        strict=True,
    )
    return [
        {
            "sample_token": sample.token,
            **place,
            "velocity": velocity,
            "ego_translation": offset,
            "detection_name": CLASS_NAMES[label],
            "attribute_name": attribute,
            "num_pts": points,
        }
        for place, velocity, offset, label, attribute, points in columns
    ]


def _place_records(boxes: GlobalBoxes) -> list[dict[str, Any]]:
    """Position, size and rotation of boxes, as the tables hold them."""
    columns = zip(boxes.translation_m.tolist(), boxes.size_m.tolist(), boxes.rotation_wxyz.tolist(), strict=True)
    return [{"translation": center, "size": size, "rotation": rotation} for center, size, rotation in columns]


def records_of(sample: Sample, detections: Detections) -> list[dict[str, Any]]:
    """Detections of one frame in the submission format."""
    kept = detections.above(MIN_SCORE)
    return boxes_to_records(
        sample.token,
        kept.boxes.astype(np.float64),
        kept.scores.astype(np.float64),
        kept.labels,
        kept.classes,
        sample.lidar2global,
        sample.ego2global[:3, 3],
    )


def submission_of(samples: Sequence[Sample], found: dict[str, Detections]) -> Records:
    """Detections of some frames, by token, in the submission format."""
    return {sample.token: records_of(sample, found[sample.token]) for sample in samples}


def detect(
    samples: Sequence[Sample], infers: dict[str, tuple[GraphSpec | SensorSpec, Infer]], console: Console, title: str
) -> dict[str, dict[str, Detections]]:
    """Run several networks or engines on the same frames; each input geometry is prepared once a frame.

    Args:
        samples: frames.
        infers: by name, the inputs that are wanted and what turns them into detections.
        console: shows a bar, and then what frames went without.
        title: of the bar.

    Returns:
        Name -> token -> detections.
    """
    preprocessors = {spec: preprocessor_for(spec) for spec, _ in infers.values()}
    found: dict[str, dict[str, Detections]] = {name: {} for name in infers}
    drops = DropLog()
    with reported_drops(drops, title, console), bar(console, title, len(samples)) as progress:
        for sample in samples:
            feeds = {
                spec: preprocess(*sensors_of(sample, spec.cameras, drops), sample.calibration)
                for spec, preprocess in preprocessors.items()
            }
            for name, (spec, infer) in infers.items():
                found[name][sample.token] = infer(feeds[spec])
            progress.advance()
    return found


def score(detections: Records, truth: GroundTruth) -> dict[str, Any]:
    """nuScenes metrics, JSON-ready.

    The devkit's summary over all ten classes, and under "present" the same over the classes that have ground truth
    after the official filters. On a full split both are equal; on a few frames an absent class would count as AP 0,
    however good the detections are.
    """
    evaluation = evaluate_records(detections, truth.records, bike_racks=truth.bike_racks)
    summary = evaluation.summary
    present = {name: curves for name, curves in evaluation.curves.items() if curves.truths}
    some = summarize(present, _restricted(evaluation.config, present)) if present else summary
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


def _restricted(config: DetectionConfig, names: Collection[str]) -> DetectionConfig:
    """The same settings for some of the classes."""
    ranges = {name: radius for name, radius in config.class_range.items() if name in names}
    return dataclasses.replace(config, class_range=ranges)
