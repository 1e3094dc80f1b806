"""Do two implementations of one student graph agree on the same inputs?

Dense outputs are compared element by element. Detections (boxes, scores, labels) are compared as sets, because rows
are sorted by score and near ties swap places between implementations that differ in the last bit: a detection is
matched with the nearest one of the same label and nearly the same score. What stays single is counted as unmatched,
with two exceptions. At the cut, with the last places full, one side may keep another of several equally weak
detections. On a flat spot of the heatmap, where neighbouring cells tie, each side may see its own peaks; a network
that was never trained has many such spots. Explained in this way is at most a fifth of the detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.sidecar import ParityRow

Outputs = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

#: FP32 against FP32: largest relative difference of each output.
FP32_TOLERANCE = 1e-4

#: A match is at most this far away (m): less than a cell, so that two peaks side by side are not one.
MATCH_DISTANCE_M = 0.3

#: Peaks of one flat spot are at most this far apart (m): a few cells.
TIE_DISTANCE_M = 5.0

#: Largest share of detections that flat spots may explain; a shift of everything is no tie.
TIE_SHARE = 0.2

#: Scores this close may swap places: rounding noise of the tier.
SCORE_TOLERANCE = {"fp32": 1e-5}
_LOW_PRECISION_SCORE_TOLERANCE = 0.05

_DETECTIONS = ("boxes", "scores", "labels")
_YAW = 6


def compare_outputs(
    reference: Outputs,
    candidate: Outputs,
    tier: str,
    reference_name: str = "student-torch",
    candidate_name: str = "onnxruntime",
) -> list[ParityRow]:
    """Compare the outputs of one frame.

    In tier fp32 a row passes when everything is finite, matched, and within FP32_TOLERANCE of the reference (largest
    difference over largest magnitude, and L2). In lower tiers it passes when everything is finite: how far it may
    drift is decided by accuracy gates, and the numbers are reported.

    Args:
        reference: outputs by name; `boxes` [K, 9], `scores` [K], `labels` [K] as in `GraphSpec.outputs`, and any
            dense maps.
        candidate: the same names and shapes.
        tier: precision of the candidate: fp32, fp16, ...
        reference_name: name in the rows.
        candidate_name: name in the rows.

    Returns:
        One row per output, in the reference's order.

    Raises:
        UsageError: names or shapes differ.
    """
    _check_same(reference, candidate)
    pairs: dict[str, _Pair] = {}
    if all(name in reference for name in _DETECTIONS):
        pairs.update(_match_detections(reference, candidate, tier))
    rows = []
    for name in reference:
        if name not in pairs:
            pairs[name] = _Pair(np.asarray(reference[name], np.float64), np.asarray(candidate[name], np.float64), 0, 0)
        rows.append(_row(name, pairs[name], tier, reference_name, candidate_name))
    return rows


def worst(rows: Iterable[ParityRow]) -> list[ParityRow]:
    """Join the rows of several frames: largest differences, smallest cosine, summed counts, fail if any failed."""
    groups: dict[tuple[str, str, str, str], list[ParityRow]] = {}
    for row in rows:
        groups.setdefault((row.reference, row.candidate, row.tier, row.output), []).append(row)
    return [_join(group) for group in groups.values()]


@dataclass(frozen=True)
class _Pair:
    """Values of one output that belong together, and what had no partner or no number."""

    reference: Floats
    candidate: Floats
    unmatched: int
    nonfinite: int


def _check_same(reference: Outputs, candidate: Outputs) -> None:
    shapes = {name: array.shape for name, array in reference.items()}
    others = {name: array.shape for name, array in candidate.items()}
    if shapes != others:
        raise UsageError(f"outputs differ in name or shape: reference {shapes}, candidate {others}")


def _match_detections(reference: Outputs, candidate: Outputs, tier: str) -> dict[str, _Pair]:
    ours, theirs = _Detections.read(reference), _Detections.read(candidate)
    tolerance = SCORE_TOLERANCE.get(tier, _LOW_PRECISION_SCORE_TOLERANCE)
    left, right = _assign(ours, theirs, tolerance)
    unmatched = _count_single(ours, left, theirs, tolerance) + _count_single(theirs, right, ours, tolerance)
    boxes, other_boxes = ours.boxes[left], theirs.boxes[right].copy()
    turns = np.round((boxes[:, _YAW] - other_boxes[:, _YAW]) / (2 * np.pi))
    other_boxes[:, _YAW] += turns * 2 * np.pi  # pi and -pi are one heading
    return {
        "boxes": _Pair(boxes, other_boxes, unmatched, _nonfinite(candidate["boxes"])),
        "scores": _Pair(ours.scores[left], theirs.scores[right], unmatched, _nonfinite(candidate["scores"])),
        "labels": _Pair(ours.labels[left], theirs.labels[right], unmatched, 0),
    }


@dataclass(frozen=True)
class _Detections:
    """Detections with a score; rows of score 0 fill a list that has fewer peaks than places."""

    boxes: Floats
    scores: Floats
    labels: Floats
    full: bool

    @classmethod
    def read(cls, outputs: Outputs) -> _Detections:
        arrays = [np.asarray(outputs[name], np.float64) for name in _DETECTIONS]
        boxes, scores, labels = arrays
        used = (scores > 0) & np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
        return cls(boxes[used], scores[used], labels[used], bool(used.all()))


def _assign(ours: _Detections, theirs: _Detections, tolerance: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs (row of ours, row of theirs): same label, near score, nearest centre first, each row once."""
    distance = np.linalg.norm(ours.boxes[:, None, :3] - theirs.boxes[None, :, :3], axis=-1)
    rows, columns = np.nonzero(_alike(ours, theirs, tolerance) & (distance <= MATCH_DISTANCE_M))
    order = np.argsort(distance[rows, columns], kind="stable")
    free_rows, free_columns = np.ones(len(ours.scores), bool), np.ones(len(theirs.scores), bool)
    left, right = [], []
    for row, column in zip(rows[order], columns[order], strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            left.append(row)
            right.append(column)
    return np.array(left, dtype=np.intp), np.array(right, dtype=np.intp)


def _count_single(side: _Detections, matched: NDArray[np.intp], other: _Detections, tolerance: float) -> int:
    """Detections without a partner, less those that a tie explains; where nothing agrees, ties explain nothing."""
    if not len(matched):
        return len(side.scores)
    single = np.ones(len(side.scores), bool)
    single[matched] = False
    if other.full:
        single &= side.scores > other.scores.min() + tolerance
    distance = np.linalg.norm(side.boxes[:, None, :3] - other.boxes[None, :, :3], axis=-1)
    tied = single & (_alike(side, other, tolerance) & (distance <= TIE_DISTANCE_M)).any(axis=1)
    if tied.sum() <= TIE_SHARE * len(side.scores):
        single &= ~tied
    return int(single.sum())


def _alike(ours: _Detections, theirs: _Detections, tolerance: float) -> NDArray[np.bool_]:
    """[rows of ours, rows of theirs]: same label and nearly the same score."""
    near = np.abs(ours.scores[:, None] - theirs.scores[None]) <= tolerance
    return np.asarray((ours.labels[:, None] == theirs.labels[None]) & near)


def _nonfinite(array: NDArray[Any]) -> int:
    return int(array.size - np.isfinite(array).sum())


def _row(name: str, pair: _Pair, tier: str, reference_name: str, candidate_name: str) -> ParityRow:
    reference, candidate = pair.reference.ravel(), pair.candidate.ravel()
    finite = np.isfinite(reference) & np.isfinite(candidate)
    nonfinite = max(pair.nonfinite, int((~finite).sum()))
    reference, candidate = reference[finite], candidate[finite]
    difference = np.abs(candidate - reference)
    max_abs = float(difference.max(initial=0.0))
    rel_l2 = _relative(float(np.linalg.norm(difference)), float(np.linalg.norm(reference)))
    max_rel = _relative(max_abs, float(np.abs(reference).max(initial=0.0)))
    passed = nonfinite == 0
    if tier == "fp32":
        passed = passed and pair.unmatched == 0 and max(max_rel, rel_l2) <= FP32_TOLERANCE
    return ParityRow(
        reference=reference_name,
        candidate=candidate_name,
        tier=tier,
        output=name,
        max_abs=max_abs,
        rel_l2=rel_l2,
        cosine=_cosine(reference, candidate),
        nonfinite=nonfinite,
        unmatched=pair.unmatched,
        result="pass" if passed else "fail",
    )


def _relative(difference: float, scale: float) -> float:
    """Difference over scale; against a reference of zeros, the difference itself."""
    return difference / scale if scale > 0 else difference


def _cosine(reference: Floats, candidate: Floats) -> float:
    lengths = float(np.linalg.norm(reference) * np.linalg.norm(candidate))
    if lengths == 0:
        return 1.0 if not reference.any() and not candidate.any() else 0.0
    return float(np.clip(reference @ candidate / lengths, -1.0, 1.0))


def _join(rows: Sequence[ParityRow]) -> ParityRow:
    return rows[0].model_copy(
        update={
            "max_abs": max(row.max_abs for row in rows),
            "rel_l2": max(row.rel_l2 for row in rows),
            "cosine": min(row.cosine for row in rows),
            "nonfinite": sum(row.nonfinite for row in rows),
            "unmatched": sum(row.unmatched for row in rows),
            "result": "fail" if any(row.result == "fail" for row in rows) else "pass",
        }
    )
