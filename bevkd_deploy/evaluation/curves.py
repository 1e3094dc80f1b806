"""Precision, confidence and true-positive errors of one class over 101 recalls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bevkd_deploy.evaluation.box_table import Array, Indices
from bevkd_deploy.evaluation.config import DetectionConfig
from bevkd_deploy.evaluation.rankings import TP_METRICS, ClassRanking

RECALL_POINTS = 101


@dataclass(frozen=True)
class ClassCurves:
    """Curves of one class; every array is float64 [101] over `recall`.

    Attributes:
        recall: 0 to 1 in steps of 0.01.
        precision: threshold in metres -> precision, 0 past the highest recall reached.
        confidence: threshold in metres -> score at that recall, 0 past the highest recall reached.
        tp_errors: metric -> mean error of the matches ranked up to that recall, at the threshold `dist_th_tp`
            (trans_err m, scale_err 1 - IoU, orient_err rad, vel_err m/s, attr_err 1 - accuracy).
        predictions: predicted boxes, after the filters.
        truths: ground-truth boxes, after the filters.
    """

    recall: Array
    precision: dict[float, Array]
    confidence: dict[float, Array]
    tp_errors: dict[str, Array]
    predictions: int
    truths: int

    def average_precision(self, threshold_m: float, config: DetectionConfig) -> float:
        """Mean precision above the minimum recall and precision, scaled to [0, 1]."""
        counted = self.precision[threshold_m][_first_counted(config) :] - config.min_precision
        return float(np.mean(np.maximum(counted, 0.0))) / (1.0 - config.min_precision)

    def tp_error(self, metric: str, config: DetectionConfig) -> float:
        """Mean error from the minimum recall to the highest recall reached; 1 if that is not above the minimum."""
        first = _first_counted(config)
        reached = np.flatnonzero(self.confidence[config.dist_th_tp])
        last = int(reached[-1]) if len(reached) else 0
        return 1.0 if last < first else float(np.mean(self.tp_errors[metric][first : last + 1]))

    def serialize(self, digits: int = 6) -> dict[str, Any]:
        """JSON form: recall, {metres: precision}, {metres: confidence}, tp_errors, predictions, truths."""

        def numbers(values: Array) -> list[float]:
            return [round(value, digits) for value in values.tolist()]

        return {
            "recall": numbers(self.recall),
            "precision": {f"{distance_m:g}": numbers(values) for distance_m, values in self.precision.items()},
            "confidence": {f"{distance_m:g}": numbers(values) for distance_m, values in self.confidence.items()},
            "tp_errors": {metric: numbers(values) for metric, values in self.tp_errors.items()},
            "predictions": self.predictions,
            "truths": self.truths,
        }


def class_curves(ranking: ClassRanking, config: DetectionConfig, sample_weight: Array | None = None) -> ClassCurves:
    """Curves of one class.

    A class without ground truth, or without any match, has zero precision and errors of one.

    Args:
        ranking: the ranked predictions.
        config: settings, those that the ranking was made with.
        sample_weight: [samples] how often each sample counts, zero or more; by default once. With weights 0 and 1 the
            curves are those of the samples with weight 1 alone.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/algo.py (accumulate).
    """
    recall = np.linspace(0, 1, RECALL_POINTS)
    precision = {threshold_m: np.zeros(RECALL_POINTS) for threshold_m in config.dist_ths}
    confidence = {threshold_m: np.zeros(RECALL_POINTS) for threshold_m in config.dist_ths}
    tp_errors = {metric: np.ones(RECALL_POINTS) for metric in TP_METRICS}
    counter = _Counter(ranking, sample_weight)
    for threshold_m, hits in ranking.hits.items():
        weight = counter.of(hits)
        counted = weight > 0
        if not counted.any() or counter.truths <= 0:
            continue
        found, total, score = counter.corners(hits[counted], weight[counted])
        reached = found / counter.truths
        precision[threshold_m] = np.interp(recall, reached, found / total, right=0)
        confidence[threshold_m] = np.interp(recall, reached, score, right=0)
        if threshold_m == config.dist_th_tp:
            means = _running_means(ranking.errors[:, counted], weight[counted])[:, ::-1]
            rising = ranking.score[hits[counted]][::-1]
            wanted = confidence[threshold_m][::-1]
            tp_errors = {
                metric: np.interp(wanted, rising, mean)[::-1] for metric, mean in zip(TP_METRICS, means, strict=True)
            }
    return ClassCurves(recall, precision, confidence, tp_errors, counter.predictions, int(counter.truths))


class _Counter:
    """Weighted counts along a ranking."""

    def __init__(self, ranking: ClassRanking, sample_weight: Array | None) -> None:
        self.score = ranking.score
        self.weight: Array | None = None
        self.predictions = len(ranking.score)
        self.truths = float(len(ranking.truth_sample))
        if sample_weight is not None:
            self.weight = sample_weight[ranking.sample]
            self.counts = np.cumsum(self.weight)
            places = np.arange(len(self.weight))
            # Predictions without weight are not there: the one before a place is the last that has some.
            self.latest = np.maximum.accumulate(np.where(self.weight > 0, places, 0)) if len(places) else places
            self.predictions = int(np.count_nonzero(self.weight))
            self.truths = float(sample_weight[ranking.truth_sample].sum())

    def of(self, hits: Indices) -> Array:
        """Weight of the predictions at some places."""
        return np.ones(len(hits)) if self.weight is None else self.weight[hits]

    def corners(self, hits: Indices, weight: Array) -> tuple[Array, Array, Array]:
        """Where recall changes along the ranking: hits found so far, predictions so far, and the score there, [2m + 1].

        Two corners for each of the m hits, one just before and one at it, and one for the end: between them recall
        stands still, and interpolation looks at the last prediction with a recall and the first with the next.
        """
        found = np.cumsum(weight)
        before = np.maximum(hits - 1, 0)
        if self.weight is None:
            total, end, last = hits + 1.0, float(len(self.score)), len(self.score) - 1
        else:
            total, end, last = self.counts[hits], float(self.counts[-1]), int(self.latest[-1])
            before = self.latest[before]
        found_corners = np.append(np.stack([found - weight, found], axis=1).ravel(), found[-1])
        total_corners = np.append(np.stack([total - weight, total], axis=1).ravel(), end)
        score = np.append(self.score[np.stack([before, hits], axis=1)].ravel(), self.score[last])
        first = 1 if total_corners[0] <= 0 else 0  # nothing comes before a hit that ranks first
        return found_corners[first:], total_corners[first:], score[first:]


def _first_counted(config: DetectionConfig) -> int:
    """Index of the first recall that counts: the one after the minimum."""
    return round(100 * config.min_recall) + 1


def _running_means(errors: Array, weight: Array) -> Array:
    """Weighted means up to each hit without the NaNs, [5, m]; 0 before the first number, 1 without any number."""
    known = ~np.isnan(errors)
    total = np.cumsum(np.where(known, errors, 0.0) * weight, axis=1)
    count = np.cumsum(known * weight, axis=1)
    means: Array = np.divide(total, count, out=np.zeros_like(total), where=count != 0)
    means[~known.any(axis=1)] = 1.0
    return means
