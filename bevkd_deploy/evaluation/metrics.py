"""nuScenes detection metrics (mAP, true-positive errors, NDS) without the devkit, and equal to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.box_table import BoxTable
from bevkd_deploy.evaluation.config import DetectionConfig, detection_cvpr_2019
from bevkd_deploy.evaluation.curves import TP_METRICS, ClassCurves, class_curves
from bevkd_deploy.evaluation.records import Kind, Records, read_boxes

#: Errors that have no meaning for a class: cones have no heading, and neither cones nor barriers move or have states.
UNDEFINED_ERRORS: dict[str, tuple[str, ...]] = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}

_SHOWN_TOKENS = 5


def evaluate(results: Records, ground_truth: Records, config: DetectionConfig | None = None) -> dict[str, Any]:
    """Score detections against ground truth.

    Boxes are filtered as the devkit does: by class range, if all records of both sides carry `ego_translation`, and
    boxes with `num_pts` 0 are dropped, if the ground truth carries it. The devkit also drops cycles inside bicycle
    racks; racks are not part of a submission, so whoever writes the ground truth leaves those cycles out.

    Args:
        results: sample token -> submission records (see `submission.py`), global frame, metres, m/s.
        ground_truth: the same, without scores; its samples must be those of `results`.
        config: settings, by default the official ones.

    Returns:
        The devkit's summary: label_aps {class: {threshold: AP}}, mean_dist_aps, mean_ap, label_tp_errors
        {class: {metric: error}} (NaN where `UNDEFINED_ERRORS` says so), tp_errors, tp_scores, nd_score, cfg; and
        filters {class_range, num_pts}: whether each filter was on.

    Raises:
        DataError: a record is malformed, the samples differ, or a sample holds too many boxes.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/evaluate.py (DetectionEval).
    """
    return evaluate_with_curves(results, ground_truth, config)[0]


def evaluate_with_curves(
    results: Records, ground_truth: Records, config: DetectionConfig | None = None
) -> tuple[dict[str, Any], dict[str, ClassCurves]]:
    """As `evaluate`, and the curves behind the figures by class."""
    config = config or detection_cvpr_2019()
    _require_same_samples(results, ground_truth)
    predicted = read_boxes(results, Kind.RESULTS)
    truth = read_boxes(ground_truth, Kind.GROUND_TRUTH, tokens=predicted.tokens)
    _require_few_boxes(predicted, config)
    in_range = predicted.ego_distance_m is not None and truth.ego_distance_m is not None
    filters = {"class_range": in_range, "num_pts": truth.num_pts is not None}
    kept_predictions, kept_truths = _kept(predicted, config, in_range), _kept(truth, config, in_range)
    curves = {
        name: class_curves(name, predicted.of_class(name, kept_predictions), truth.of_class(name, kept_truths), config)
        for name in config.class_names
    }
    return {**_summary(curves, config), "filters": filters}, curves


def _summary(curves: dict[str, ClassCurves], config: DetectionConfig) -> dict[str, Any]:
    label_aps = {
        name: {threshold_m: curve.average_precision(threshold_m, config) for threshold_m in config.dist_ths}
        for name, curve in curves.items()
    }
    label_tp_errors = {
        name: {
            metric: np.nan if metric in UNDEFINED_ERRORS.get(name, ()) else curve.tp_error(metric, config)
            for metric in TP_METRICS
        }
        for name, curve in curves.items()
    }
    mean_dist_aps = {name: float(np.mean(list(aps.values()))) for name, aps in label_aps.items()}
    mean_ap = float(np.mean(list(mean_dist_aps.values())))
    tp_errors = {metric: _mean_of_defined([e[metric] for e in label_tp_errors.values()]) for metric in TP_METRICS}
    # The order matters: max(0, NaN) is 0 for a metric that none of the evaluated classes defines.
    tp_scores = {metric: max(0.0, 1.0 - error) for metric, error in tp_errors.items()}
    total = float(config.mean_ap_weight * mean_ap + np.sum(list(tp_scores.values())))
    return {
        "label_aps": label_aps,
        "mean_dist_aps": mean_dist_aps,
        "mean_ap": mean_ap,
        "label_tp_errors": label_tp_errors,
        "tp_errors": tp_errors,
        "tp_scores": tp_scores,
        "nd_score": total / float(config.mean_ap_weight + len(tp_scores)),
        "cfg": config.serialize(),
    }


def _mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _kept(boxes: BoxTable, config: DetectionConfig, in_range: bool) -> NDArray[np.bool_]:
    """Mask [n] of the boxes closer than the range of their class, if that filter is on, and not without points."""
    keep = np.ones(len(boxes), dtype=bool)
    if in_range and boxes.ego_distance_m is not None:
        range_m = np.array([config.class_range.get(name, 0.0) for name in CLASS_NAMES])
        keep &= boxes.ego_distance_m < range_m[boxes.label]
    if boxes.num_pts is not None:
        keep &= boxes.num_pts != 0
    return keep


def _require_same_samples(results: Records, ground_truth: Records) -> None:
    missing = [token for token in ground_truth if token not in results]
    extra = [token for token in results if token not in ground_truth]
    if missing or extra:
        raise DataError(
            f"results and ground truth must hold the same samples: {len(missing)} missing from the results"
            f"{_first_few(missing)}, {len(extra)} not in the ground truth{_first_few(extra)}; "
            "a sample without detections needs an empty list"
        )
    if not ground_truth:
        raise DataError("results and ground truth hold no samples; there is nothing to evaluate")


def _first_few(tokens: list[str]) -> str:
    if not tokens:
        return ""
    return f" ({', '.join(tokens[:_SHOWN_TOKENS])}{', ...' if len(tokens) > _SHOWN_TOKENS else ''})"


def _require_few_boxes(predicted: BoxTable, config: DetectionConfig) -> None:
    counts = np.bincount(predicted.sample, minlength=len(predicted.tokens))
    worst = int(np.argmax(counts))
    if counts[worst] > config.max_boxes_per_sample:
        raise DataError(
            f"results: sample {predicted.tokens[worst]!r} holds {counts[worst]} boxes, the limit is "
            f"{config.max_boxes_per_sample}; keep the highest scores"
        )
