"""Ranked predictions of each class with what they hit: all that precision, recall and errors are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.evaluation.box_table import Array, BoxTable, Indices
from bevkd_deploy.evaluation.config import DetectionConfig
from bevkd_deploy.evaluation.matching import match

TP_METRICS: tuple[str, ...] = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")


@dataclass(frozen=True)
class ClassRanking:
    """Predictions of one class by falling confidence, and its matches.

    Attributes:
        score: [n] confidence.
        sample: [n] index of the sample.
        hits: threshold in metres -> ascending places in the ranking that match a ground-truth box.
        errors: [5, m] errors of the m hits at `dist_th_tp`, in the order of `TP_METRICS` (m, 1 - IoU, rad, m/s,
            1 - accuracy); NaN where the ground truth leaves velocity or attribute open.
        truth_sample: [t] sample of each ground-truth box.
    """

    score: Array
    sample: Indices
    hits: dict[float, Indices]
    errors: Array
    truth_sample: Indices


def rank(
    predicted: BoxTable, truth: BoxTable, rows: tuple[Indices, Indices], config: DetectionConfig
) -> dict[str, ClassRanking]:
    """Match boxes and rank them by class; `rows` are those of both tables that passed the filters."""
    matches = match(predicted, truth, config.dist_ths, rows)
    score, sample = predicted.score[matches.order], predicted.sample[matches.order]
    hits = {threshold_m: np.flatnonzero(matched >= 0) for threshold_m, matched in matches.truth.items()}
    scored = hits[config.dist_th_tp]
    errors = _errors(predicted, truth, matches.order[scored], matches.truth[config.dist_th_tp][scored])
    real_label, real_sample = truth.label[rows[1]], truth.sample[rows[1]]
    rankings = {}
    for name in config.class_names:
        label = CLASS_NAMES.index(name)
        start, stop = int(matches.first[label]), int(matches.first[label + 1])
        inside = slice(*np.searchsorted(scored, [start, stop]))
        rankings[name] = ClassRanking(
            score=score[start:stop],
            sample=sample[start:stop],
            hits={key: places[slice(*np.searchsorted(places, [start, stop]))] - start for key, places in hits.items()},
            errors=errors[:, inside],
            truth_sample=real_sample[real_label == label],
        )
    return rankings


def _errors(predicted: BoxTable, truth: BoxTable, guess: Indices, real: Indices) -> Array:
    """Errors [5, m] of m matches: rows `guess` of the predictions and `real` of the ground truth."""
    offset_m = predicted.translation_m[guess, :2] - truth.translation_m[real, :2]
    size_m, real_size_m = predicted.size_m[guess], truth.size_m[real]
    common = _volume(np.minimum(size_m, real_size_m))
    union = _volume(real_size_m) + _volume(size_m) - common
    # A barrier looks the same from both ends.
    period = np.where(predicted.label[guess] == CLASS_NAMES.index("barrier"), np.pi, 2 * np.pi)
    turn = (truth.yaw_rad[real] - predicted.yaw_rad[guess] + period / 2) % period - period / 2
    change_mps = predicted.velocity_mps[guess] - truth.velocity_mps[real]
    wrong = (predicted.attribute[guess] != truth.attribute[real]).astype(float)
    errors: Array = np.stack(
        [
            np.sqrt(offset_m[:, 0] ** 2 + offset_m[:, 1] ** 2),
            1 - common / union,
            np.abs(turn),
            np.sqrt(change_mps[:, 0] ** 2 + change_mps[:, 1] ** 2),
            np.where(truth.attribute[real] == 0, np.nan, wrong),
        ]
    )
    return errors


def _volume(size_m: Array) -> Array:
    volume_m3: Array = size_m[:, 0] * size_m[:, 1] * size_m[:, 2]
    return volume_m3
