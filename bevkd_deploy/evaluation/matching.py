"""Greedy matching of predictions with ground truth by centre distance, within each sample and class.

Taken in order of falling confidence, each prediction gets the nearest ground-truth box of its class that is still free,
if that one is closer than the threshold. Only the few pairs closer than the largest threshold matter; they are found
in a sorted list of ground truth. The choice itself is made for all samples and classes at once, in rounds: a prediction
whose nearest free truth is within reach of no better-ranked prediction gets it, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.evaluation.box_table import Array, BoxTable, Indices

_PAIRS_PER_BLOCK = 1 << 19  # bounds the memory of the distances to some tens of MB


@dataclass(frozen=True)
class Matches:
    """Predictions in ranking order, class by class, and for each distance threshold what they matched.

    Attributes:
        order: [p] row of the prediction at each place; classes follow each other as in `CLASS_NAMES`.
        first: [classes + 1] place at which each class begins, and the end.
        truth: threshold in metres -> [p] row of the matched ground truth at each place, -1 for none.
    """

    order: Indices
    first: Indices
    truth: dict[float, Indices]


def match(
    predicted: BoxTable,
    truth: BoxTable,
    thresholds_m: tuple[float, ...],
    rows: tuple[Indices, Indices] | None = None,
) -> Matches:
    """Match boxes over all samples and classes, once per threshold.

    Equal confidences rank the later prediction first, and equal distances take the earlier ground truth.

    Args:
        predicted: detections.
        truth: ground truth over the same samples.
        thresholds_m: centre distances below which a pair can match.
        rows: ascending rows of both tables that take part, by default all.

    Source: nuscenes-devkit 1.2.0, nuscenes/eval/detection/algo.py (accumulate).
    """
    taking_part, real = rows or (np.arange(len(predicted)), np.arange(len(truth)))
    order = taking_part[np.argsort(predicted.score[taking_part], kind="stable")[::-1]]
    label = predicted.label[order].astype(np.int8)
    order = order[np.argsort(label, kind="stable")]
    counts = np.bincount(label, minlength=len(CLASS_NAMES))
    place, row, distance_m = _by_preference(*_near_pairs(predicted, truth, order, real, max(thresholds_m)))
    chosen = {}
    for threshold_m in thresholds_m:
        # A pair at or past the threshold is never the match, and neither are the pairs after it in preference.
        close = distance_m < threshold_m
        chosen[threshold_m] = _choose(place[close], row[close], len(order), len(truth))
    return Matches(order, np.concatenate([[0], np.cumsum(counts)]), chosen)


def _choose(place: Indices, row: Indices, predictions: int, truths: int) -> Indices:
    """Ground-truth row at each place [predictions], -1 for none, from pairs in order of place, then of preference."""
    matched = np.full(predictions, -1, dtype=np.int64)
    taken = np.zeros(truths, dtype=bool)
    first_pair = np.full(truths, np.iinfo(np.int64).max)
    while len(place):
        index = np.arange(len(place))
        np.minimum.at(first_pair, row, index)
        first_choice = np.concatenate([[True], place[1:] != place[:-1]])
        # The best-ranked prediction that could want this truth wants it most: nobody can take it away.
        settled = np.flatnonzero(first_choice & (first_pair[row] == index))
        matched[place[settled]] = row[settled]
        taken[row[settled]] = True
        first_pair[row] = np.iinfo(np.int64).max
        open_pairs = np.flatnonzero((matched[place] < 0) & ~taken[row])
        place, row = place[open_pairs], row[open_pairs]
    return matched


def _by_preference(place: Indices, row: Indices, distance_m: Array) -> tuple[Indices, Indices, Array]:
    """Pairs that are in order of place, reordered within each place: the nearest first, then the earlier row."""
    repeated = place[1:] == place[:-1]
    several = np.flatnonzero(np.append(repeated, False) | np.append(False, repeated)) if len(place) else place
    preferred = several[np.lexsort((row[several], distance_m[several], place[several]))]
    row[several], distance_m[several] = row[preferred], distance_m[preferred]
    return place, row, distance_m


def _near_pairs(
    predicted: BoxTable, truth: BoxTable, order: Indices, real: Indices, radius_m: float
) -> tuple[Indices, Indices, Array]:
    """Pairs [k] of one sample and class closer than `radius_m`, by place: place, ground-truth row, distance in metres.

    Ground truth is sorted by sample and class and then by x, so the partners of a prediction lie in one short run.
    """
    real, first, last = _runs(predicted, truth, order, real, radius_m)
    xy_m, real_xy_m = predicted.translation_m[order, :2], truth.translation_m[real, :2]
    partners = last - first
    places, rows, distances = [], [], []
    with np.errstate(over="ignore"):
        squared_m2 = radius_m**2 * (1 + 1e-9)
        for start, stop in _blocks(partners):
            counts = partners[start:stop]
            place = np.repeat(np.arange(start, stop), counts)
            ends = np.cumsum(counts)
            slot = np.arange(len(place)) - np.repeat(ends - counts - first[start:stop], counts)
            offset_m = xy_m[place] - real_xy_m[slot]
            maybe = np.flatnonzero(offset_m[:, 0] ** 2 + offset_m[:, 1] ** 2 <= squared_m2)
            distance_m = _length(offset_m[maybe])
            near = distance_m < radius_m
            places.append(place[maybe][near])
            rows.append(real[slot[maybe][near]])
            distances.append(distance_m[near])
    if not places:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(places), np.concatenate(rows), np.concatenate(distances)


def _runs(
    predicted: BoxTable, truth: BoxTable, order: Indices, real: Indices, radius_m: float
) -> tuple[Indices, Indices, Indices]:
    """`real` in sorted order and, for each place, where the run of its possible partners begins and ends in it."""
    classes = len(CLASS_NAMES)
    group = predicted.sample[order] * classes + predicted.label[order]
    real_group = truth.sample[real] * classes + truth.label[real]
    x_m, real_x_m = predicted.translation_m[order, 0], truth.translation_m[real, 0]
    sizes = np.bincount(real_group, minlength=len(predicted.tokens) * classes)
    ends = np.cumsum(sizes)
    if not len(order) or not len(real):
        return real, np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    with np.errstate(over="ignore"):
        least = min(x_m.min(), real_x_m.min())
        pitch_m = max(x_m.max(), real_x_m.max()) - least + 4 * radius_m
        furthest = pitch_m * len(sizes)
    if not np.isfinite(furthest):  # x of this size leaves the groups no room on one axis: take each group whole
        real = real[np.argsort(real_group, kind="stable")]
        return real, (ends - sizes)[group], ends[group]
    key, real_key = group * pitch_m + (x_m - least), real_group * pitch_m + (real_x_m - least)
    by_key = np.argsort(real_key)
    reach_m = radius_m + 8 * np.spacing(furthest)  # the keys are rounded; a pair too many costs nothing
    ascending = np.argsort(key)  # searched in order, each search starts near its answer
    first, last = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    first[ascending] = np.searchsorted(real_key[by_key], key[ascending] - reach_m, side="left")
    last[ascending] = np.searchsorted(real_key[by_key], key[ascending] + reach_m, side="right")
    first = np.maximum(first, (ends - sizes)[group])
    return real[by_key], first, np.maximum(first, np.minimum(last, ends[group]))


def _blocks(partners: Indices) -> Iterator[tuple[int, int]]:
    """Runs of places that hold about `_PAIRS_PER_BLOCK` pairs, at least one place each."""
    ends = np.cumsum(partners)
    start = 0
    while start < len(partners):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_PER_BLOCK, side="right")))
        yield start, stop
        start = stop


def _length(offset_m: Array) -> Array:
    """Length [k] of offsets [k, 2] in the ground plane.

    A dot product per pair, as `numpy.linalg.norm` takes it for one vector: another order of rounding would decide
    otherwise for boxes that lie exactly a threshold apart, or equally far from two others.
    """
    offset_m = np.ascontiguousarray(offset_m)
    length_m: Array = np.sqrt((offset_m[:, None, :] @ offset_m[:, :, None])[:, 0, 0])
    return length_m
