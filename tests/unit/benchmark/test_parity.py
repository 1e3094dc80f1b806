"""Numbers worked out by hand on small sets of detections."""

from __future__ import annotations

import numpy as np
import pytest

from bevkd_deploy.benchmark.parity import compare_outputs, worst
from bevkd_deploy.contracts.errors import UsageError

BOX = [0.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]


def detections(*rows: tuple[float, float, int, float]) -> dict[str, np.ndarray]:
    """One detection per (x, y, label, score)."""
    boxes = np.array([[x, y, *BOX[2:]] for x, y, _, _ in rows], np.float32)
    scores = np.array([score for *_, score in rows], np.float32)
    return {"boxes": boxes, "scores": scores, "labels": np.array([label for _, _, label, _ in rows], np.int32)}


def rows_of(reference, candidate, tier="fp32"):
    return {row.output: row for row in compare_outputs(reference, candidate, tier)}


REFERENCE = detections((10.0, 0.0, 0, 0.9), (-5.0, 3.0, 1, 0.6), (20.0, 8.0, 0, 0.3))


def test_dense_numbers_by_hand():
    """Difference (0, 0, 1, -2) on (3, 4, 0, 0): L2 is sqrt(5) / 5, cosine 25 / (5 * sqrt(30))."""
    reference, candidate = {"map": np.array([3.0, 4.0, 0.0, 0.0])}, {"map": np.array([3.0, 4.0, 1.0, -2.0])}
    row = compare_outputs(reference, candidate, "fp16", "teacher", "student")[0]
    assert (row.reference, row.candidate, row.tier, row.output) == ("teacher", "student", "fp16", "map")
    assert row.max_abs == 2.0
    assert row.rel_l2 == pytest.approx(np.sqrt(5) / 5)
    assert row.cosine == pytest.approx(25 / (5 * np.sqrt(30)))
    assert row.result == "pass"  # lower tiers are judged by accuracy gates
    assert compare_outputs(reference, candidate, "fp32")[0].result == "fail"


@pytest.mark.parametrize(("factor", "result"), [(1.00009, "pass"), (1.00011, "fail")])
def test_fp32_limit_is_one_in_ten_thousand(factor, result):
    reference = {"map": np.array([1.0, -2.0])}
    assert rows_of(reference, {"map": reference["map"] * factor})["map"].result == result


def test_one_wrong_element_of_many_fails_although_l2_is_small():
    reference = {"map": np.ones(1_000_000)}
    candidate = {"map": np.ones(1_000_000)}
    candidate["map"][7] = 1.01
    row = rows_of(reference, candidate)["map"]
    assert row.rel_l2 < 1e-4
    assert row.result == "fail"


def test_zeros_agree_with_zeros_alone():
    zeros, ones = {"map": np.zeros(3)}, {"map": np.full(3, 0.5)}
    same = rows_of(zeros, zeros)["map"]
    assert (same.cosine, same.rel_l2, same.result) == (1.0, 0.0, "pass")
    other = rows_of(zeros, ones)["map"]
    assert (other.cosine, other.result) == (0.0, "fail")
    assert other.rel_l2 == pytest.approx(np.sqrt(0.75))


@pytest.mark.parametrize("tier", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_values_are_counted_and_fail_in_every_tier(tier, value):
    candidate = {"map": np.array([1.0, value, value])}
    row = rows_of({"map": np.ones(3)}, candidate, tier)["map"]
    assert (row.nonfinite, row.max_abs, row.result) == (2, 0.0, "fail")


def test_nonfinite_detections_fail():
    candidate = {name: array.copy() for name, array in REFERENCE.items()}
    candidate["boxes"][1, 6] = np.nan
    rows = rows_of(REFERENCE, candidate, "fp16")
    assert (rows["boxes"].nonfinite, rows["boxes"].result) == (1, "fail")
    candidate["scores"][2] = np.nan
    assert rows_of(REFERENCE, candidate, "fp16")["scores"].result == "fail"


def test_rows_in_another_order_agree():
    """Two nearly equal scores swap places."""
    reference = detections((10.0, 0.0, 0, 0.9000001), (-5.0, 3.0, 0, 0.9))
    candidate = detections((-5.0, 3.0, 0, 0.9000001), (10.0, 0.0, 0, 0.9))
    rows = rows_of(reference, candidate)
    assert {row.result for row in rows.values()} == {"pass"}
    assert rows["boxes"].max_abs == 0.0
    assert rows["boxes"].unmatched == 0


def test_a_moved_box_is_measured():
    candidate = {name: array.copy() for name, array in REFERENCE.items()}
    candidate["boxes"][0, 0] += 0.25
    rows = rows_of(REFERENCE, candidate)
    assert rows["boxes"].max_abs == pytest.approx(0.25)
    assert (rows["boxes"].result, rows["scores"].result) == ("fail", "pass")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["boxes"].__setitem__((0, 0), 11.0),  # too far to be the same object
        lambda d: d["labels"].__setitem__(0, 4),
        lambda d: d["scores"].__setitem__(0, 0.8),
    ],
)
def test_what_has_no_partner_fails(change):
    candidate = {name: array.copy() for name, array in REFERENCE.items()}
    change(candidate)
    rows = rows_of(REFERENCE, candidate)
    assert {row.unmatched for row in rows.values()} == {2}  # one on each side
    assert {row.result for row in rows.values()} == {"fail"}


def test_equally_weak_detections_at_the_cut_may_differ():
    """The third place goes to one of two detections with the same score; with a place to spare that is a difference."""
    reference = detections((10.0, 0.0, 0, 0.9), (-5.0, 3.0, 1, 0.6), (20.0, 8.0, 0, 0.3))
    candidate = detections((10.0, 0.0, 0, 0.9), (-5.0, 3.0, 1, 0.6), (-20.0, 8.0, 0, 0.3))
    assert {row.result for row in rows_of(reference, candidate).values()} == {"pass"}
    empty = (0.0, 0.0, 0, 0.0)
    spare = [{n: np.concatenate([a, detections(empty)[n]]) for n, a in d.items()} for d in (reference, candidate)]
    assert rows_of(*spare)["boxes"].unmatched == 2


def test_a_strong_detection_is_not_lost_at_the_cut():
    candidate = detections((-5.0, 3.0, 1, 0.6), (20.0, 8.0, 0, 0.3), (30.0, 8.0, 0, 0.2))
    assert rows_of(REFERENCE, candidate)["boxes"].unmatched == 1


def flat_spot(x: float, score: float, ties: int = 1) -> dict[str, np.ndarray]:
    """Ten detections; `ties` of them, at the end of a row of cells, are seen elsewhere by each side."""
    common = [(-40.0 + 8 * number, 20.0, 0, 0.9 - 0.01 * number) for number in range(9 - ties)]
    moved = [(x, -20.0 + 8 * number, 0, score) for number in range(ties)]
    return detections(*common, *moved, (9.0, 40.0, 0, 0.1))


@pytest.mark.parametrize(
    ("x", "score", "unmatched"),
    [(1.6, 0.7, 0), (30.0, 0.7, 2), (1.6, 0.6, 2)],
)
def test_peaks_of_a_flat_spot_may_differ(x, score, unmatched):
    """Cells of one class that tie within 5 m; farther away, or with another score, the same is a difference."""
    rows = rows_of(flat_spot(0.0, 0.7), flat_spot(x, score))
    assert rows["boxes"].unmatched == unmatched


@pytest.mark.parametrize(("ties", "unmatched"), [(2, 0), (3, 6)])
def test_flat_spots_explain_a_fifth_at_most(ties, unmatched):
    rows = rows_of(flat_spot(0.0, 0.7, ties), flat_spot(1.6, 0.7, ties))
    assert rows["boxes"].unmatched == unmatched


def test_ties_explain_nothing_where_no_detection_agrees():
    reference = detections((0.0, 0.0, 0, 0.5), (1.6, 0.0, 0, 0.5))
    candidate = detections((3.2, 0.0, 0, 0.5), (4.8, 0.0, 0, 0.5))
    rows = rows_of(reference, candidate)
    assert (rows["boxes"].unmatched, rows["boxes"].result) == (4, "fail")


def test_pi_and_minus_pi_are_one_heading():
    reference = {name: array.copy() for name, array in REFERENCE.items()}
    candidate = {name: array.copy() for name, array in REFERENCE.items()}
    reference["boxes"][:, 6], candidate["boxes"][:, 6] = np.pi, -np.pi
    assert rows_of(reference, candidate)["boxes"].result == "pass"
    candidate["boxes"][:, 6] = -np.pi + 0.01
    assert rows_of(reference, candidate)["boxes"].max_abs == pytest.approx(0.01, rel=1e-4)


def test_empty_places_are_not_compared():
    reference = detections((10.0, 0.0, 0, 0.9), (1.0, 1.0, 0, 0.0))
    candidate = detections((10.0, 0.0, 0, 0.9), (1.0, 1.0, 0, 0.0))
    candidate["boxes"][1, 6] = 1.0
    rows = rows_of(reference, candidate)
    assert {(row.result, row.unmatched) for row in rows.values()} == {("pass", 0)}


def test_detections_and_maps_together_keep_the_order_of_the_reference():
    extra = {**REFERENCE, "heatmap": np.ones((2, 2))}
    assert [row.output for row in compare_outputs(extra, extra, "fp32")] == ["boxes", "scores", "labels", "heatmap"]


def test_other_names_or_shapes_are_an_error():
    with pytest.raises(UsageError, match="differ in name or shape"):
        compare_outputs({"map": np.ones(3)}, {"map": np.ones(4)}, "fp32")
    with pytest.raises(UsageError, match="differ in name or shape"):
        compare_outputs({"map": np.ones(3)}, {"maps": np.ones(3)}, "fp32")


def test_worst_of_several_frames():
    frames = [({"map": np.array([1.0, 0.0])}, {"map": np.array(c)}) for c in ([1.0, 0.0], [1.0, 0.5], [np.nan, 0.0])]
    rows = [row for reference, candidate in frames for row in compare_outputs(reference, candidate, "fp16")]
    (joined,) = worst(rows)
    assert (joined.max_abs, joined.rel_l2, joined.nonfinite, joined.result) == (0.5, 0.5, 1, "fail")
    assert joined.cosine == min(row.cosine for row in rows)
    assert worst([]) == []
    assert [row.output for row in worst(compare_outputs(REFERENCE, REFERENCE, "fp32"))] == ["boxes", "scores", "labels"]
