"""NT-Xent as in SimCLR."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.nt_xent import NTXentLoss


def pair(rows: int = 4, size: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, size, dtype=torch.float64), torch.randn(rows, size, dtype=torch.float64)


def test_value_in_numpy() -> None:
    student, teacher = pair()
    rows = np.concatenate([student.numpy(), teacher.numpy()])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    total = 0.0
    for i in range(8):
        others = [math.exp(rows[i] @ rows[k] / 0.1) for k in range(8) if k != i]
        assert len(others) == 7  # the counterpart and 2N - 2 negatives
        total -= math.log(math.exp(rows[i] @ rows[(i + 4) % 8] / 0.1) / sum(others))
    assert NTXentLoss()(student, teacher).item() == pytest.approx(total / 8, rel=1e-12)


def test_two_orthogonal_pairs_by_hand() -> None:
    rows = torch.eye(2)
    # The counterpart at cosine 1, two negatives at 0.
    assert NTXentLoss(0.5)(2 * rows, 3 * rows).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))


def test_indistinct_rows_have_the_value_of_guessing() -> None:
    assert NTXentLoss()(torch.ones(5, 3), torch.ones(5, 3)).item() == pytest.approx(math.log(9))


def test_gradient_reaches_the_student_and_not_the_teacher() -> None:
    loss = NTXentLoss(0.3)
    student, teacher = (side.requires_grad_() for side in pair())
    loss(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher), (student,))


def test_a_single_row_is_refused() -> None:
    with pytest.raises(DistillError, match="got 1 row in all processes together"):
        NTXentLoss()(torch.ones(1, 3), torch.ones(1, 3))


def test_half_precision_stays_finite_and_exact() -> None:
    loss = NTXentLoss(0.01)
    student, teacher = ((300 * side).half() for side in pair())
    expected = loss(student.float(), teacher.float())
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(student, teacher)
    value.backward()
    assert torch.equal(value, expected) and value.isfinite() and value.dtype == torch.float32
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("case", ["nt_xent", "nt_xent one row each"])
def test_two_processes_are_one_with_the_whole_batch(two_processes: dict[str, Any], case: str) -> None:
    whole = two_processes["whole"][case]
    for rank in ("0", "1"):
        got = two_processes[rank][case]
        assert got["value"].item() == pytest.approx(whole["value"].item(), rel=1e-12)
        for mine, expected in zip(got["gradients"], whole["gradients"], strict=True):
            assert expected.any() and torch.allclose(mine, expected, rtol=1e-10, atol=1e-14)
