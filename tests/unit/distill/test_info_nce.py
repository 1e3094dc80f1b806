"""Symmetric InfoNCE as in CLIP."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import DistillError
from bevkd_deploy.distill.losses.info_nce import InfoNCELoss


def pair(rows: int = 4, size: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, size, dtype=torch.float64), torch.randn(rows, size, dtype=torch.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_two_orthogonal_pairs_by_hand() -> None:
    # Cosines: 1 with the own row, 0 with the other; lengths do not matter.
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    assert InfoNCELoss(0.5)(student, teacher).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_value_in_numpy() -> None:
    student, teacher = pair()
    rows = [side.numpy() / np.linalg.norm(side.numpy(), axis=1, keepdims=True) for side in (student, teacher)]
    logits = rows[0] @ rows[1].T / 0.07
    expected = -(np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean()) / 2
    assert InfoNCELoss()(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert InfoNCELoss(learned=True).double()(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_indistinct_rows_have_the_value_of_guessing() -> None:
    assert InfoNCELoss()(torch.ones(5, 3), torch.ones(5, 3)).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("learned", [False, True])
def test_gradient_reaches_the_student_and_the_scale_but_not_the_teacher(learned: bool) -> None:
    loss = InfoNCELoss(0.3, learned=learned).double()
    student, teacher = (side.requires_grad_() for side in pair())
    loss(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None
    assert [parameter.grad.abs() > 0 for parameter in loss.parameters()] == [True] * learned
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher), (student,))


def test_the_learned_scale_stays_within_clips_limits() -> None:
    loss = InfoNCELoss(learned=True)
    assert loss.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for start, kept in ((9.0, math.log(100)), (-2.0, 0.0)):
        with torch.no_grad():
            loss.logit_scale.fill_(start)
        loss.zero_grad()
        student, teacher = (side.float() for side in pair())
        loss(student, teacher).backward()
        assert loss.logit_scale.item() == pytest.approx(kept)
        assert loss.logit_scale.grad.abs() > 0  # it can come back
    frozen = InfoNCELoss(learned=True).eval()
    with torch.no_grad():
        frozen.logit_scale.fill_(9.0)
    frozen(*pair())
    assert frozen.logit_scale.item() == 9.0


def test_a_learned_scale_is_in_the_state_and_a_fixed_one_is_not() -> None:
    assert list(InfoNCELoss(learned=True).state_dict()) == ["logit_scale"]
    assert not InfoNCELoss().state_dict()
    loss = InfoNCELoss(0.3, learned=True)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(*pair()), loss(*pair()))


def test_a_single_row_is_refused() -> None:
    with pytest.raises(DistillError, match=r"got 1 row in all processes together.*teaches nothing.*at least 2"):
        InfoNCELoss()(torch.ones(1, 3), torch.ones(1, 3))


def test_shapes_and_temperatures_are_checked() -> None:
    with pytest.raises(DistillError, match=r"\[2, 3\] and \[2, 4\]; put projectors"):
        InfoNCELoss()(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(DistillError, match="vectors"):
        InfoNCELoss()(torch.ones(2, 3, 1), torch.ones(2, 3, 1))
    for temperature, learned in ((0.0, False), (-1.0, False), (0.001, True), (2.0, True)):
        with pytest.raises(DistillError, match="temperature must be above 0"):
            InfoNCELoss(temperature, learned=learned)


@pytest.mark.parametrize("learned", [False, True])
def test_half_precision_stays_finite_and_exact(learned: bool) -> None:
    loss = InfoNCELoss(0.01, learned=learned)  # exp(100) is beyond float16
    student, teacher = ((300 * side).half() for side in pair())
    expected = loss(student.float(), teacher.float())
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(student, teacher)
    value.backward()
    assert torch.equal(value, expected) and value.isfinite() and value.dtype == torch.float32
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("case", ["info_nce", "info_nce fixed", "info_nce one row each"])
def test_two_processes_are_one_with_the_whole_batch(two_processes: dict[str, Any], case: str) -> None:
    whole = two_processes["whole"][case]
    for rank in ("0", "1"):
        got = two_processes[rank][case]
        assert got["value"].item() == pytest.approx(whole["value"].item(), rel=1e-12)
        assert len(got["gradients"]) == (3 if case == "info_nce" else 2)
        for mine, expected in zip(got["gradients"], whole["gradients"], strict=True):
            assert expected.any() and torch.allclose(mine, expected, rtol=1e-10, atol=1e-14)
