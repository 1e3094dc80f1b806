"""Rows of two processes as one tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bevkd_deploy.distill import processes
from bevkd_deploy.distill.gathering import gather_rows, gather_rows_with_gradient, own_rows

ROWS = torch.arange(10).reshape(5, 2)


@pytest.fixture
def ranks(two_processes: dict[str, Any]) -> list[dict[str, Any]]:
    return [two_processes[rank]["gathering"] for rank in ("0", "1")]


def test_one_process_has_all_rows() -> None:
    rows = ROWS.double().requires_grad_()
    assert processes.count() == 1
    assert torch.equal(gather_rows(rows), rows) and not gather_rows(rows).requires_grad
    assert gather_rows_with_gradient(rows) is rows
    assert own_rows(rows) == slice(0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool], ids=str)
def test_every_process_gets_the_rows_of_all_in_rank_order(ranks: list[dict[str, Any]], dtype: torch.dtype) -> None:
    for got in ranks:
        assert got["world"] == 2
        assert got[str(dtype)].dtype == dtype
        assert torch.equal(got[str(dtype)], ROWS.to(dtype))


def test_a_process_finds_its_own_rows(ranks: list[dict[str, Any]]) -> None:
    assert [got["own"] for got in ranks] == [(0, 2), (2, 5)]


def test_a_process_may_have_no_rows(ranks: list[dict[str, Any]]) -> None:
    for got in ranks:
        assert torch.equal(got["nothing from rank 1"], ROWS[:3])
        assert got["nothing at all"].shape == (0, 2)


def test_gradient_reaches_own_rows_times_the_number_of_processes(ranks: list[dict[str, Any]]) -> None:
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None].expand(5, 2)
    for got, own in zip(ranks, (slice(0, 2), slice(2, 5)), strict=True):
        assert not got["no gradient"]
        assert torch.equal(got["with gradient"], ROWS.double())
        assert torch.equal(got["gradient"], 2 * weights[own])
