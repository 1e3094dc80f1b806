from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevkd_deploy.evaluation.packing import pack

INF = float("inf")


@pytest.mark.parametrize("count", [1, 15, 16, 70000])
def test_rows_come_back_as_columns(count: int) -> None:
    values = np.random.default_rng(0).normal(size=(count, 6))
    values[0] = [np.nan, INF, -INF, -0.0, 1e308, 5e-324]
    rows = [((row[0], row[1], row[2]), row[3], list(row[4:])) for row in values.tolist()]
    columns = pack(rows, [3, 0, 2])
    assert columns is not None and [column.shape for column in columns] == [(count, 3), (count,), (count, 2)]
    np.testing.assert_array_equal(np.column_stack(columns).view(np.int64), values.view(np.int64))


@pytest.mark.parametrize(
    "bad",
    [
        ([1.0, 2], 3.0),
        ([1.0, None], 3.0),
        ([1.0, "2"], 3.0),
        ([1.0, True], 3.0),
        ([1.0, 2.0, 3.0], 3.0),
        ([1.0], 3.0),
        (1.0, [2.0, 3.0]),
        ([1.0, 2.0], [3.0]),
        ([1.0, 2.0],),
        ([1.0, 2.0], 3.0, 4.0),
        ([1.0, 10**400], 3.0),
        ([1.0, 2.0], object()),
        ({"a": 1.0, "b": 2.0}, 3.0),
        (np.array([1.0, 2.0]), 3.0),
        None,
    ],
)
def test_any_other_row_is_left_to_the_slow_reader(bad: Any) -> None:
    good = ([1.0, 2.0], 3.0)
    assert pack([good, good], [2, 0]) is not None
    for rows in ([bad], [good, bad], [bad, good], [good, bad, good]):
        assert pack(rows, [2, 0]) is None


def test_shapes_that_swap_lengths_between_rows_are_seen() -> None:
    """The bytes of these add up to those of well-formed rows."""
    assert pack([([1.0, 2.0, 3.0], [1.0]), ([1.0, 2.0], [1.0, 2.0])], [2, 2]) is None


def test_no_rows() -> None:
    assert pack([], [3, 0]) is None
