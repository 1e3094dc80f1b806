"""Dense contrast: a case small enough to add up by hand, its exclusions, its queue."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.distill.losses.contrast import DenseContrastLoss

#: Four cells in a row; channels with zero mean and unit deviation, so that standardising changes nothing.
TEACHER = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]).view(1, 2, 1, 4)
STUDENT = torch.tensor([[2.0, 0.0, 1.0, -3.0], [0.5, 1.0, -1.0, 0.0]]).view(1, 2, 1, 4)
BACKGROUND = -1
TEMPERATURE = 0.5


def heatmap(*cell_classes: int | None) -> Tensor:
    """Gaussians [1, 2, 1, X] with a peak of the given class in each cell that has one."""
    made = torch.zeros(1, 2, 1, len(cell_classes))
    for cell, number in enumerate(cell_classes):
        if number is not None:
            made[0, number, 0, cell] = 1.0
    return made


def loss_of(**changes: Any) -> DenseContrastLoss:
    """A loss whose embeddings are the maps themselves."""
    options: dict[str, Any] = {"embedding_channels": 2, "temperature": TEMPERATURE, "cells_per_sample": 4,
                               "queue_size": 0, "cell_m": 4.0}  # fmt: skip
    made = DenseContrastLoss(2, 2, **{**options, **changes})
    nn.init.eye_(made.embed.weight)
    nn.init.zeros_(made.embed.bias)
    made.teacher_projection.copy_(torch.eye(2))
    return made


def unit(features: Tensor) -> list[list[float]]:
    vectors = features.flatten(2)[0].T
    return (vectors / vectors.norm(dim=1, keepdim=True)).tolist()


def by_hand(allowed: list[list[int]], keys: list[list[float]], order: list[int]) -> float:
    """Mean of -log softmax at the positive; `allowed` lists the keys that each query of `order` competes over."""
    queries = unit(STUDENT)
    total = 0.0
    for cell, candidates in zip(order, allowed, strict=True):
        scores = {k: math.exp(sum(a * b for a, b in zip(queries[cell], keys[k], strict=True)) / TEMPERATURE)
                  for k in candidates}  # fmt: skip
        total -= math.log(scores[cell] / sum(scores.values()))
    return total / len(order)


def test_four_cells_by_hand() -> None:
    # Classes 0 and 1, then two of background, which are one class and no negatives of each other.
    expected = by_hand([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2], [0, 1, 3]], unit(TEACHER), [0, 1, 2, 3])
    assert expected > 0.3
    assert loss_of()(STUDENT, TEACHER, heatmap(0, 1, None, None)).item() == pytest.approx(expected, rel=1e-4)


def test_cells_of_one_class_are_no_negatives() -> None:
    expected = by_hand([[0, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 3]], unit(TEACHER), [0, 1, 2, 3])
    assert loss_of()(STUDENT, TEACHER, heatmap(1, 1, None, None)).item() == pytest.approx(expected, rel=1e-4)


def test_cells_within_two_metres_are_no_negatives() -> None:
    # Cells of 1 m: the neighbour is too near, the cell after it, at 2 m, is not.
    expected = by_hand([[0, 2, 3], [1, 3], [0, 2], [0, 1, 3]], unit(TEACHER), [0, 1, 2, 3])
    loss = loss_of(cell_m=1.0)(STUDENT, TEACHER, heatmap(0, 1, None, None))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_distance_counts_rows_and_columns_and_only_within_a_frame() -> None:
    loss = loss_of(cell_m=1.0)
    frame = torch.tensor([0, 0, 0, 1, 0])
    # On a map of 7 columns: (0, 2), (1, 2), (1, 6), then (1, 2) of another frame, and (3, 2).
    cell = torch.tensor([2, 9, 13, 9, 23])
    classes = torch.tensor([0, 1, 2, 3, 4])
    alike = loss._too_alike(frame, cell, classes, 7)
    assert alike.nonzero().tolist() == [[0, 1], [1, 0]]


def test_without_any_object_the_loss_is_zero_and_finite() -> None:
    student = STUDENT.clone().requires_grad_()
    loss = loss_of()(student, TEACHER, heatmap(None, None, None, None))
    loss.backward()
    assert loss == 0
    assert torch.isfinite(student.grad).all()


def test_a_frame_that_shows_nothing_new_is_finite() -> None:
    """A constant teacher has no deviation to divide by."""
    assert torch.isfinite(loss_of()(STUDENT, torch.ones_like(TEACHER), heatmap(0, 1, None, None)))
    assert torch.isfinite(loss_of()(torch.zeros_like(STUDENT), TEACHER, heatmap(0, 1, None, None)))


def test_the_teacher_is_standardised_first() -> None:
    scaled = TEACHER * torch.tensor([30.0, 0.2]).view(1, 2, 1, 1) + 5
    target = heatmap(0, 1, None, None)
    assert loss_of()(STUDENT, scaled, target).item() == pytest.approx(
        loss_of()(STUDENT, TEACHER, target).item(), rel=1e-4
    )


def test_the_queue_fills_wraps_and_remembers_classes() -> None:
    loss = loss_of(queue_size=6)
    keys = torch.tensor(unit(TEACHER))
    loss(STUDENT, TEACHER, heatmap(0, 1, None, None))
    assert loss.key_class.tolist() == [0, 1, BACKGROUND, BACKGROUND, -2, -2]
    assert torch.allclose(loss.keys[:4], keys, atol=1e-5)
    assert not loss.keys[4:].any()
    assert loss.cursor == 4
    loss(STUDENT, -TEACHER, heatmap(1, None, 0, None))
    # Objects come first: cells 0, 2, then 1, 3.
    assert loss.key_class.tolist() == [BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, 1, 0]
    assert torch.allclose(loss.keys[[4, 5, 0, 1]], -keys[[0, 2, 1, 3]], atol=1e-5)
    assert torch.allclose(loss.keys[2:4], keys[2:], atol=1e-5)
    assert loss.cursor == 2


def test_a_batch_larger_than_the_queue_fills_it_once() -> None:
    loss = loss_of(queue_size=3)
    loss(STUDENT, TEACHER, heatmap(0, 1, None, None))
    assert loss.key_class.tolist() == [0, 1, BACKGROUND]
    assert loss.cursor == 0


def test_empty_slots_and_own_class_of_the_queue_are_no_negatives() -> None:
    loss = loss_of(queue_size=6)
    target = heatmap(0, 1, None, None)
    first = loss(STUDENT, TEACHER, target).item()
    assert first == pytest.approx(loss_of()(STUDENT, TEACHER, target).item(), rel=1e-5)
    keys = [*unit(TEACHER), *unit(TEACHER)]  # 4 and 5 of classes 0 and 1, then 6 and 7 of background
    allowed = [[0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 3, 4, 6, 7], [0, 1, 2, 4, 5], [0, 1, 3, 4, 5]]
    assert loss(STUDENT, TEACHER, target).item() == pytest.approx(by_hand(allowed, keys, [0, 1, 2, 3]), rel=1e-4)


def test_evaluation_leaves_the_queue_alone() -> None:
    loss = loss_of(queue_size=6).eval()
    loss(STUDENT, TEACHER, heatmap(0, 1, None, None))
    assert loss.cursor == 0
    assert not loss.keys.any()


def test_gradients_reach_the_student_side_alone() -> None:
    """In training mode, where the queue changes between forward and backward."""
    loss = loss_of(queue_size=6)
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher, heatmap(0, 1, None, None))
    loss(student, teacher, heatmap(0, 1, None, None)).backward()
    assert student.grad.any()
    assert loss.embed.weight.grad.any()
    assert teacher.grad is None
    assert [name for name, _ in loss.named_parameters()] == ["embed.weight", "embed.bias"]


def test_three_quarters_of_the_samples_are_objects_where_there_are_enough() -> None:
    torch.manual_seed(0)
    target = torch.zeros(2, 3, 8, 8)
    target[0, 2, :4] = 0.31  # 32 object cells of class 2, 32 of ground at the threshold or below
    target[0, 1, 4:] = 0.3
    target[1, 0, 0, :2] = 1.0  # two object cells only
    frame, cell, classes = loss_of(cells_per_sample=16)._sample_cells(target)
    assert [int((frame == number).sum()) for number in (0, 1)] == [16, 16]
    assert sorted(classes[frame == 0].tolist()) == [BACKGROUND] * 4 + [2] * 12
    assert (cell[(frame == 0) & (classes == 2)] < 32).all()
    assert (cell[(frame == 0) & (classes == BACKGROUND)] >= 32).all()
    assert sorted(classes[frame == 1].tolist()) == [BACKGROUND] * 14 + [0] * 2
    for number in (0, 1):
        assert len(set(cell[frame == number].tolist())) == 16
    torch.manual_seed(0)
    again = loss_of(cells_per_sample=16)._sample_cells(target)
    assert torch.equal(again[1], cell)


def test_the_teacher_embedding_is_orthogonal_and_fixed() -> None:
    made = DenseContrastLoss(3, 8, embedding_channels=5, temperature=0.1, cells_per_sample=4, queue_size=2, cell_m=1.0)
    assert torch.allclose(made.teacher_projection.T @ made.teacher_projection, torch.eye(5), atol=1e-5)
    assert set(made.state_dict()) >= {"teacher_projection", "keys", "key_class", "cursor"}
    narrow = DenseContrastLoss(
        3, 4, embedding_channels=9, temperature=0.1, cells_per_sample=4, queue_size=2, cell_m=1.0
    )
    assert narrow.keys.shape == (2, 4)
