"""Greedy matching of predictions with ground truth by centre distance, within each sample.

Taken in order of falling confidence, each prediction gets the nearest ground-truth box of its class that is still free,
if that one is closer than the threshold. Boxes further apart than the largest threshold never meet, so distances are
computed once as arrays, only the few close pairs are kept, and the choice itself walks those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bevkd_deploy.evaluation.box_table import Array, BoxTable, Indices

_PAIRS_PER_BLOCK = 1 << 19  # bounds the memory of the distances to some tens of MB


@dataclass(frozen=True)
class Matches:
    """Predictions of one class in ranking order and, for each distance threshold, what they matched.

    Attributes:
        order: [p] row of the prediction at each rank.
        truth: threshold in metres -> [p] row of the matched ground truth at each rank, -1 for none.
    """

    order: Indices
    truth: dict[float, Indices]


def match(predicted: BoxTable, truth: BoxTable, thresholds_m: tuple[float, ...]) -> Matches:
    """Match boxes of one class over all samples, once per threshold.

    Equal confidences rank the later prediction first, and equal distances take the earlier ground truth.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/algo.py (accumulate).
    """
    order = np.argsort(predicted.score, kind="stable")[::-1]
    rank_of = np.empty(len(order), dtype=np.int64)
    rank_of[order] = np.arange(len(order))
    near_predicted, near_truth, distance_m = _near_pairs(predicted, truth, max(thresholds_m))
    by_preference = np.lexsort((near_truth, distance_m, rank_of[near_predicted]))
    rank = rank_of[near_predicted][by_preference]
    row = near_truth[by_preference]
    distance_m = distance_m[by_preference]
    chosen = {}
    for threshold_m in thresholds_m:
        # A pair at or past the threshold is never the match, and neither are the pairs after it in preference.
        close = distance_m < threshold_m
        chosen[threshold_m] = _choose(rank[close], row[close], len(predicted), len(truth))
    return Matches(order, chosen)


def _choose(rank: Indices, row: Indices, predictions: int, truths: int) -> Indices:
    """Ground-truth row at each rank [predictions], -1 for none, from pairs in order of rank, then of preference."""
    matched = np.full(predictions, -1, dtype=np.int64)
    free = [True] * truths
    settled = -1
    for one_rank, one_row in zip(rank.tolist(), row.tolist(), strict=True):
        if one_rank != settled and free[one_row]:
            free[one_row] = False
            matched[one_rank] = one_row
            settled = one_rank
    return matched


def _near_pairs(predicted: BoxTable, truth: BoxTable, radius_m: float) -> tuple[Indices, Indices, Array]:
    """All pairs of one sample closer than `radius_m`: prediction row, ground-truth row and distance in metres, [k]."""
    per_sample = np.bincount(truth.sample, minlength=len(predicted.tokens))
    first_row = np.concatenate([[0], np.cumsum(per_sample)])[:-1][predicted.sample]
    partners = per_sample[predicted.sample]
    rows, truth_rows, distances = [], [], []
    for start, stop in _blocks(partners):
        counts = partners[start:stop]
        row = np.repeat(np.arange(start, stop), counts)
        ends = np.cumsum(counts)
        truth_row = np.arange(len(row)) - np.repeat(ends - counts - first_row[start:stop], counts)
        distance_m = _center_distance(predicted.translation_m[row], truth.translation_m[truth_row])
        near = distance_m < radius_m
        rows.append(row[near])
        truth_rows.append(truth_row[near])
        distances.append(distance_m[near])
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(rows), np.concatenate(truth_rows), np.concatenate(distances)


def _blocks(partners: Indices) -> Iterator[tuple[int, int]]:
    """Runs of predictions that hold about `_PAIRS_PER_BLOCK` pairs, at least one prediction each."""
    ends = np.cumsum(partners)
    start = 0
    while start < len(partners):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_PER_BLOCK, side="right")))
        yield start, stop
        start = stop


def _center_distance(first_m: Array, second_m: Array) -> Array:
    """Distance in the ground plane [k] of points [k, 3].

    A dot product per pair, as `numpy.linalg.norm` takes it for one vector: another order of rounding would decide
    otherwise for boxes that lie exactly a threshold apart, or equally far from two others.
    """
    offset = np.ascontiguousarray(first_m[:, :2] - second_m[:, :2])
    with np.errstate(over="ignore"):
        distance_m: Array = np.sqrt((offset[:, None, :] @ offset[:, :, None])[:, 0, 0])
    return distance_m
