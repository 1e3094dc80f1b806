"""nuScenes detection metrics (mAP, true-positive errors, NDS) without the devkit, and equal to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.evaluation.box_table import BoxTable, Indices
from bevkd_deploy.evaluation.config import DetectionConfig, detection_cvpr_2019
from bevkd_deploy.evaluation.curves import ClassCurves, class_curves
from bevkd_deploy.evaluation.racks import Racks, outside_racks
from bevkd_deploy.evaluation.rankings import TP_METRICS, ClassRanking, rank
from bevkd_deploy.evaluation.records import Kind, Records, read_boxes

#: Errors that have no meaning for a class: cones have no heading, and neither cones nor barriers move or have states.
UNDEFINED_ERRORS: dict[str, tuple[str, ...]] = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}

_SHOWN_TOKENS = 5


@dataclass(frozen=True)
class Evaluation:
    """Detections scored against ground truth.

    Attributes:
        config: the settings.
        tokens: the samples.
        rankings: class -> ranked predictions and their matches.
        curves: class -> the curves behind the figures.
        filters: which filters were on: class_range, num_pts, bike_racks.
    """

    config: DetectionConfig
    tokens: tuple[str, ...]
    rankings: dict[str, ClassRanking]
    curves: dict[str, ClassCurves]
    filters: dict[str, bool]

    @property
    def summary(self) -> dict[str, Any]:
        """What `evaluate` returns."""
        return {**summarize(self.curves, self.config), "filters": self.filters}


def evaluate(
    results: Records,
    ground_truth: Records,
    config: DetectionConfig | None = None,
    *,
    bike_racks: Racks | None = None,
) -> dict[str, Any]:
    """Score detections against ground truth.

    Boxes are filtered as the devkit does: by class range, if all records of both sides carry `ego_translation`; boxes
    with `num_pts` 0 are dropped, if their side carries it; bicycles and motorcycles that stand in a bicycle rack are
    dropped on both sides, if `bike_racks` is given.

    Args:
        results: sample token -> submission records (see `submission.py`), global frame, metres, m/s.
        ground_truth: the same, without scores; its samples must be those of `results`.
        config: settings, by default the official ones.
        bike_racks: sample token -> racks as {translation, size, rotation}, as in a ground-truth file.

    Returns:
        The devkit's summary: label_aps {class: {threshold: AP}}, mean_dist_aps, mean_ap, label_tp_errors
        {class: {metric: error}} (NaN where `UNDEFINED_ERRORS` says so), tp_errors, tp_scores, nd_score, cfg; and
        filters {class_range, num_pts, bike_racks}: whether each filter was on.

    Raises:
        DataError: a record or rack is malformed, the samples differ, or a sample holds too many boxes.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/evaluate.py (DetectionEval).
    """
    return evaluate_records(results, ground_truth, config, bike_racks=bike_racks).summary


def evaluate_records(
    results: Records,
    ground_truth: Records,
    config: DetectionConfig | None = None,
    *,
    bike_racks: Racks | None = None,
) -> Evaluation:
    """As `evaluate`, with the rankings and curves behind the figures."""
    require_same_samples(results, ground_truth)
    predicted = read_boxes(results, Kind.RESULTS)
    truth = read_boxes(ground_truth, Kind.GROUND_TRUTH, tokens=predicted.tokens)
    return evaluate_tables(predicted, truth, config, bike_racks=bike_racks)


def evaluate_tables(
    predicted: BoxTable,
    truth: BoxTable,
    config: DetectionConfig | None = None,
    *,
    bike_racks: Racks | None = None,
) -> Evaluation:
    """As `evaluate_records`, of boxes as columns; both tables hold the same samples in the same order."""
    config = config or detection_cvpr_2019()
    if predicted.tokens != truth.tokens:
        require_same_samples(predicted.tokens, truth.tokens)
        raise DataError("results and ground truth hold the same samples in another order; use BoxTable.of_samples")
    require_same_samples(predicted.tokens, truth.tokens)
    _require_few_boxes(predicted, config)
    in_range = predicted.ego_distance_m is not None and truth.ego_distance_m is not None
    rows = (_kept(predicted, config, in_range, bike_racks), _kept(truth, config, in_range, bike_racks))
    rankings = rank(predicted, truth, rows, config)
    return Evaluation(
        config=config,
        tokens=predicted.tokens,
        rankings=rankings,
        curves={name: class_curves(ranking, config) for name, ranking in rankings.items()},
        filters={
            "class_range": in_range,
            "num_pts": truth.num_pts is not None,
            "bike_racks": bike_racks is not None,
        },
    )


def summarize(curves: dict[str, ClassCurves], config: DetectionConfig) -> dict[str, Any]:
    """The devkit's summary of the curves of the evaluated classes; see `evaluate`."""
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


def _kept(boxes: BoxTable, config: DetectionConfig, in_range: bool, bike_racks: Racks | None) -> Indices:
    """Ascending rows of the boxes that pass the filters."""
    keep = np.ones(len(boxes), dtype=bool)
    if in_range and boxes.ego_distance_m is not None:
        range_m = np.array([config.class_range.get(name, 0.0) for name in CLASS_NAMES])
        keep &= boxes.ego_distance_m < range_m[boxes.label]
    if boxes.num_pts is not None:
        keep &= boxes.num_pts != 0
    if bike_racks is not None:
        keep &= outside_racks(boxes, bike_racks)
    return np.flatnonzero(keep)


def require_same_samples(results: Collection[str], ground_truth: Collection[str]) -> None:
    """Refuse results and ground truth whose sample tokens differ, or that have none."""
    asked, given = dict.fromkeys(ground_truth), dict.fromkeys(results)
    missing = [token for token in asked if token not in given]
    extra = [token for token in given if token not in asked]
    if missing or extra:
        raise DataError(
            f"results and ground truth must hold the same samples: {len(missing)} missing from the results"
            f"{_first_few(missing)}, {len(extra)} not in the ground truth{_first_few(extra)}; "
            "a sample without detections needs an empty list"
        )
    if not asked:
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
