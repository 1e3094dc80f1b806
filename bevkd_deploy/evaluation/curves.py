"""Precision, confidence and true-positive errors of one class over 101 recalls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevkd_deploy.evaluation.box_table import Array, BoxTable, Indices
from bevkd_deploy.evaluation.config import DetectionConfig
from bevkd_deploy.evaluation.matching import match

RECALL_POINTS = 101
TP_METRICS: tuple[str, ...] = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")


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


def class_curves(name: str, predicted: BoxTable, truth: BoxTable, config: DetectionConfig) -> ClassCurves:
    """Curves of one class from its boxes, both tables filtered and over the same samples.

    A class without ground truth, or without any match, has zero precision and errors of one.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/algo.py (accumulate).
    """
    recall = np.linspace(0, 1, RECALL_POINTS)
    precision = {threshold_m: np.zeros(RECALL_POINTS) for threshold_m in config.dist_ths}
    confidence = {threshold_m: np.zeros(RECALL_POINTS) for threshold_m in config.dist_ths}
    tp_errors = {metric: np.ones(RECALL_POINTS) for metric in TP_METRICS}
    matches = match(predicted, truth, config.dist_ths)
    score = predicted.score[matches.order]
    for threshold_m, matched in matches.truth.items():
        hit = matched >= 0
        if not hit.any():
            continue
        found = np.cumsum(hit).astype(float)
        reached = found / float(len(truth))
        precision[threshold_m] = np.interp(recall, reached, found / np.arange(1, len(hit) + 1), right=0)
        confidence[threshold_m] = np.interp(recall, reached, score, right=0)
        if threshold_m == config.dist_th_tp:
            errors = _match_errors(name, predicted, truth, matches.order[hit], matched[hit])
            tp_errors = {
                metric: _over_confidence(confidence[threshold_m], score[hit], error) for metric, error in errors.items()
            }
    return ClassCurves(recall, precision, confidence, tp_errors, len(predicted), len(truth))


def _first_counted(config: DetectionConfig) -> int:
    """Index of the first recall that counts: the one after the minimum."""
    return round(100 * config.min_recall) + 1


def _over_confidence(confidence: Array, match_score: Array, error: Array) -> Array:
    """Running mean of an error [m], read at the confidence of each recall point [101]."""
    return np.interp(confidence[::-1], match_score[::-1], _running_mean(error)[::-1])[::-1]


def _running_mean(values: Array) -> Array:
    """Mean up to each position without the NaNs; 0 before the first number, and all 1 without any number."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    total, count = np.nancumsum(values), np.cumsum(known)
    mean: Array = np.divide(total, count, out=np.zeros_like(total), where=count != 0)
    return mean


def _match_errors(name: str, predicted: BoxTable, truth: BoxTable, rows: Indices, matched: Indices) -> dict[str, Array]:
    """Errors [m] of m matches by metric; NaN where the ground truth leaves velocity or attribute open."""
    guess, real = predicted.select(rows), truth.select(matched)
    offset_m = (guess.translation_m - real.translation_m)[:, :2]
    common = np.prod(np.minimum(guess.size_m, real.size_m), axis=1)
    union = np.prod(real.size_m, axis=1) + np.prod(guess.size_m, axis=1) - common
    # A barrier looks the same from both ends.
    period = np.pi if name == "barrier" else 2 * np.pi
    turn = (real.yaw_rad - guess.yaw_rad + period / 2) % period - period / 2
    wrong = (guess.attribute != real.attribute).astype(float)
    return {
        "trans_err": np.linalg.norm(offset_m, axis=1),
        "scale_err": 1 - common / union,
        "orient_err": np.abs(turn),
        "vel_err": np.linalg.norm(guess.velocity_mps - real.velocity_mps, axis=1),
        "attr_err": np.where(real.attribute == 0, np.nan, wrong),
    }
