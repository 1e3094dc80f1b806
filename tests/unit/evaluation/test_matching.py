from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevkd_deploy.evaluation import matching
from bevkd_deploy.evaluation.records import Kind, read_boxes

THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)


def _greedy(predicted: Any, truth: Any, threshold_m: float) -> list[tuple[int, int]]:
    """(prediction row, truth row or -1) in ranking order, by the plain definition."""
    ranked = sorted(range(len(predicted)), key=lambda row: (predicted.score[row], row), reverse=True)
    taken: set[int] = set()
    chosen = []
    for row in ranked:
        best, nearest_m = -1, np.inf
        for other in range(len(truth)):
            if truth.sample[other] == predicted.sample[row] and other not in taken:
                distance_m = np.linalg.norm(predicted.translation_m[row, :2] - truth.translation_m[other, :2])
                if distance_m < nearest_m:
                    best, nearest_m = other, distance_m
        if nearest_m < threshold_m:
            taken.add(best)
            chosen.append((row, best))
        else:
            chosen.append((row, -1))
    return chosen


@pytest.mark.parametrize("pairs_per_block", [1, 7, 1 << 19])
@pytest.mark.parametrize("seed", range(6))
def test_matches_are_those_of_the_plain_definition(
    seed: int, pairs_per_block: int, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_PAIRS_PER_BLOCK", pairs_per_block)
    rng = np.random.default_rng(seed)
    tokens = ["a", "b", "c", "d"]

    def boxes(count: int) -> dict[str, list[dict[str, Any]]]:
        listed: dict[str, list[dict[str, Any]]] = {token: [] for token in tokens}
        for _ in range(count):
            token = tokens[rng.integers(3)]  # the last sample stays empty
            xy = tuple(rng.integers(0, 12, 2) * 0.5)
            listed[token].append(make_record(token, xy, detection_score=float(rng.integers(0, 4)) / 4))
        return listed

    predicted = read_boxes(boxes(40), Kind.RESULTS)
    truth = read_boxes(boxes(25), Kind.GROUND_TRUTH)
    found = matching.match(predicted, truth, THRESHOLDS_M)
    for threshold_m in THRESHOLDS_M:
        pairs = list(zip(found.order.tolist(), found.truth[threshold_m].tolist(), strict=True))
        assert pairs == _greedy(predicted, truth, threshold_m)
        assert threshold_m < 1 or any(row >= 0 for _, row in pairs)


@pytest.mark.parametrize(("predictions", "truths"), [(0, 0), (0, 2), (2, 0)])
def test_an_empty_side_matches_nothing(predictions: int, truths: int, make_record: Any) -> None:
    predicted = read_boxes({"a": [make_record()] * predictions}, Kind.RESULTS)
    truth = read_boxes({"a": [make_record()] * truths}, Kind.GROUND_TRUTH)
    found = matching.match(predicted, truth, THRESHOLDS_M)
    assert [rows.tolist() for rows in found.truth.values()] == [[-1] * predictions] * 4


def test_a_box_at_the_threshold_does_not_match(make_record: Any) -> None:
    predicted = read_boxes({"a": [make_record(xy=(0.3, 0.4))]}, Kind.RESULTS)
    truth = read_boxes({"a": [make_record()]}, Kind.GROUND_TRUTH)
    assert matching.match(predicted, truth, (0.5, 0.5000001)).truth == {0.5: [-1], 0.5000001: [0]}


@pytest.mark.parametrize("origin_m", [0.0, 1e6, 1e12])
@pytest.mark.parametrize("side", [-1, 1])
def test_partners_are_found_along_x_up_to_the_threshold(origin_m: float, side: int, make_record: Any) -> None:
    """Partners are looked up by x among those of all samples; none may be lost at the end of the range."""
    offset_m = 3.999 if origin_m < 1e12 else 3.75
    records = {token: [make_record(token, (origin_m, index))] for index, token in enumerate("abc")}
    shifted = {token: [make_record(token, (origin_m + side * offset_m, index))] for index, token in enumerate("abc")}
    predicted, truth = read_boxes(shifted, Kind.RESULTS), read_boxes(records, Kind.GROUND_TRUTH)
    found = matching.match(predicted, truth, (2.0, 4.0)).truth
    assert (found[2.0] == -1).all() and (found[4.0] >= 0).all()


def test_positions_that_overflow_are_matched_all_the_same(make_record: Any) -> None:
    xs = (-1e308, 0.0, 1e308)
    predicted = read_boxes({"a": [make_record("a", (x, 0.0)) for x in xs]}, Kind.RESULTS)
    truth = read_boxes({"a": [make_record("a", (x, 0.0)) for x in xs]}, Kind.GROUND_TRUTH)
    found = matching.match(predicted, truth, (2.0,))
    assert found.order.tolist() == found.truth[2.0].tolist()
