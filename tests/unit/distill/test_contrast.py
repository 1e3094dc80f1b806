"""Dense contrast: a case small enough to add up by hand, its exclusions, its queue."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from bevkd_deploy.contracts.recipe_distill import ContrastLossConfig
from bevkd_deploy.distill.losses.cell_sampling import SampledCells
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.scene import BevScene

#: Four cells in a row; channels with zero mean and unit deviation, so that standardising changes nothing.
TEACHER = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]).view(1, 2, 1, 4)
STUDENT = torch.tensor([[2.0, 0.0, 1.0, -3.0], [0.5, 1.0, -1.0, 0.0]]).view(1, 2, 1, 4)
BACKGROUND = -1
TEMPERATURE = 0.5


def scene(*classes: int | None, instances: tuple[int, ...] = (0, 1, 2, 3), cell_m: float = 4.0) -> BevScene:
    """One row of cells, each with the class of an object of its own, or None for clear ground."""
    class_id = torch.tensor([BACKGROUND if number is None else number for number in classes]).view(1, 1, -1)
    numbers = torch.tensor(instances[: len(classes)]).view(1, 1, -1)
    clear = class_id == BACKGROUND
    return BevScene(torch.where(clear, -1, numbers), class_id, clear, -torch.arange(4.0).view(1, 1, 4), cell_m)


def loss_of(**changes: Any) -> DenseContrastLoss:
    """A loss that takes all four cells and whose embeddings are the maps themselves."""
    options: dict[str, Any] = {"embedding_channels": 2, "temperature": TEMPERATURE, "cells_per_sample": 16,
                               "queue_size": 0}  # fmt: skip
    made = DenseContrastLoss(2, 2, ContrastLossConfig(**{**options, **changes}))
    nn.init.eye_(made.embed.weight)
    nn.init.zeros_(made.embed.bias)
    made.teacher_projection.copy_(torch.eye(2))
    return made


def unit(features: Tensor) -> list[list[float]]:
    vectors = features.flatten(2)[0].T
    return (vectors / vectors.norm(dim=1, keepdim=True)).tolist()


def by_hand(allowed: dict[int, list[int]], keys: list[list[float]] | None = None) -> float:
    """Mean of -log softmax at the positive; `allowed` lists the keys that each query competes over."""
    queries, keys = unit(STUDENT), keys or unit(TEACHER)
    total = 0.0
    for cell, candidates in allowed.items():
        scores = {k: math.exp(sum(a * b for a, b in zip(queries[cell], keys[k], strict=True)) / TEMPERATURE)
                  for k in candidates}  # fmt: skip
        total -= math.log(scores[cell] / sum(scores.values()))
    return total / len(allowed)


#: Classes 0 and 1, then two of background, which are one class and no negatives of each other.
MIXED = {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2], 3: [0, 1, 3]}


def test_four_cells_by_hand() -> None:
    expected = by_hand(MIXED)
    assert expected > 0.3
    assert loss_of()(STUDENT, TEACHER, scene(0, 1, None, None)).item() == pytest.approx(expected, rel=1e-4)


def test_cells_of_one_class_are_no_negatives() -> None:
    expected = by_hand({0: [0, 2, 3], 1: [1, 2, 3], 2: [0, 1, 2], 3: [0, 1, 3]})
    assert loss_of()(STUDENT, TEACHER, scene(1, 1, None, None)).item() == pytest.approx(expected, rel=1e-4)


def test_other_objects_of_a_class_are_negatives_where_that_is_asked_for() -> None:
    """The same object never is, nor is background of background."""
    loss = loss_of(same_class_negatives=True)
    two = loss(STUDENT, TEACHER, scene(1, 1, None, None)).item()
    assert two == pytest.approx(by_hand(MIXED), rel=1e-4)
    one = loss(STUDENT, TEACHER, scene(1, 1, None, None, instances=(5, 5, 0, 0))).item()
    assert one == pytest.approx(by_hand({0: [0, 2, 3], 1: [1, 2, 3], 2: [0, 1, 2], 3: [0, 1, 3]}), rel=1e-4)


def test_cells_within_two_metres_are_no_negatives() -> None:
    # Cells of 1 m: the neighbour is too near, the cell after it, at 2 m, is not.
    expected = by_hand({0: [0, 2, 3], 1: [1, 3], 2: [0, 2], 3: [0, 1, 3]})
    loss = loss_of()(STUDENT, TEACHER, scene(0, 1, None, None, cell_m=1.0))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_distance_counts_rows_and_columns_and_only_within_a_frame() -> None:
    # On a map of 7 columns: (0, 2), (1, 2), (1, 6), then (1, 2) of another frame, and (3, 2).
    cells = SampledCells(torch.tensor([0, 0, 0, 1, 0]), torch.tensor([2, 9, 13, 9, 23]), torch.arange(5),
                         torch.arange(5))  # fmt: skip
    empty = torch.zeros(2, 4, 7)
    alike = loss_of()._too_alike(cells, BevScene(empty, empty, empty, empty, cell_m=1.0))
    assert alike.nonzero().tolist() == [[0, 1], [1, 0]]


def test_instances_are_of_their_own_frame() -> None:
    """The same number in another frame is another object."""
    cells = SampledCells(torch.tensor([0, 0, 1]), torch.tensor([0, 6, 0]), torch.tensor([3, 3, 3]),
                         torch.tensor([2, 2, 2]))  # fmt: skip
    empty = torch.zeros(2, 4, 7)
    alike = loss_of(same_class_negatives=True)._too_alike(cells, BevScene(empty, empty, empty, empty, cell_m=1.0))
    assert alike.nonzero().tolist() == [[0, 1], [1, 0]]


def test_cells_without_negatives_are_left_out_of_the_mean() -> None:
    """Two cells of 1 m and one at 3 m: all of background's negatives and the first two's are each other's."""
    expected = by_hand({0: [0, 3], 3: [0, 3]})
    teaching = scene(0, 0, 0, None, cell_m=1.0)
    # Cells 1 and 2 are of the class of 0 and within 2 m of 3, so nothing is left to compare them with.
    loss = loss_of()(STUDENT, TEACHER, BevScene(teaching.instance, teaching.class_id, teaching.clear,
                                                teaching.hardness, cell_m=0.99))  # fmt: skip
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_without_negatives_the_loss_is_zero_and_gradients_exist() -> None:
    """A batch of ground alone: data-parallel training waits for a gradient of every parameter."""
    student = STUDENT.clone().requires_grad_()
    term = loss_of()
    loss = term(student, TEACHER, scene(None, None, None, None))
    loss.backward()
    assert loss == 0
    for gradient in (student.grad, term.embed.weight.grad, term.embed.bias.grad):
        assert gradient is not None and not gradient.any()


def test_without_any_cell_the_loss_is_zero_and_gradients_exist() -> None:
    student = STUDENT.clone().requires_grad_()
    term = loss_of(queue_size=3)
    nothing = scene(None, None, None, None)
    unclear = BevScene(nothing.instance, nothing.class_id, torch.zeros_like(nothing.clear), nothing.hardness, 4.0)
    loss = term(student, TEACHER, unclear)
    loss.backward()
    assert loss == 0
    assert term.embed.weight.grad is not None and student.grad is not None
    assert term.cursor == 0


def test_ground_alone_learns_from_the_queue() -> None:
    term = loss_of(queue_size=2)
    term(STUDENT, TEACHER, scene(0, 1, None, None))
    student = STUDENT.clone().requires_grad_()
    loss = term(student, TEACHER, scene(None, None, None, None))
    loss.backward()
    assert loss > 0
    assert student.grad.any()


def test_a_frame_that_shows_nothing_new_is_finite() -> None:
    """A constant teacher has no deviation to divide by."""
    assert torch.isfinite(loss_of()(STUDENT, torch.ones_like(TEACHER), scene(0, 1, None, None)))
    assert torch.isfinite(loss_of()(torch.zeros_like(STUDENT), TEACHER, scene(0, 1, None, None)))


def test_the_teacher_is_standardised_first() -> None:
    scaled = TEACHER * torch.tensor([30.0, 0.2]).view(1, 2, 1, 1) + 5
    seen = scene(0, 1, None, None)
    assert loss_of()(STUDENT, scaled, seen).item() == pytest.approx(loss_of()(STUDENT, TEACHER, seen).item(), rel=1e-4)


def test_the_queue_fills_wraps_and_remembers_classes() -> None:
    loss = loss_of(queue_size=6)
    keys = torch.tensor(unit(TEACHER))
    loss(STUDENT, TEACHER, scene(0, None, None, None))
    assert loss.key_class.tolist() == [0, BACKGROUND, BACKGROUND, BACKGROUND, -2, -2]
    assert torch.allclose(loss.keys[:4], keys, atol=1e-5)
    assert not loss.keys[4:].any()
    assert loss.cursor == 4
    loss(STUDENT, -TEACHER, scene(None, None, None, 2))
    # Objects come first: cell 3, then the ground by hardness.
    assert loss.key_class.tolist() == [BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, 2, BACKGROUND]
    assert torch.allclose(loss.keys[[4, 5, 0, 1]], -keys[[3, 0, 1, 2]], atol=1e-5)
    assert torch.allclose(loss.keys[2:4], keys[2:], atol=1e-5)
    assert loss.cursor == 2


def test_a_batch_larger_than_the_queue_fills_it_once() -> None:
    loss = loss_of(queue_size=3)
    loss(STUDENT, TEACHER, scene(0, None, None, None))
    assert loss.key_class.tolist() == [0, BACKGROUND, BACKGROUND]
    assert loss.cursor == 0


def test_empty_slots_and_own_class_of_the_queue_are_no_negatives() -> None:
    loss = loss_of(queue_size=6)
    seen = scene(0, None, None, None)
    first = loss(STUDENT, TEACHER, seen).item()
    assert first == pytest.approx(loss_of()(STUDENT, TEACHER, seen).item(), rel=1e-5)
    keys = [*unit(TEACHER), *unit(TEACHER)]  # 4 of class 0, then 5, 6 and 7 of background
    allowed = {0: [0, 1, 2, 3, 5, 6, 7], 1: [0, 1, 4], 2: [0, 2, 4], 3: [0, 3, 4]}
    assert loss(STUDENT, TEACHER, seen).item() == pytest.approx(by_hand(allowed, keys), rel=1e-4)


def test_the_queue_lends_its_own_class_where_that_is_asked_for() -> None:
    loss = loss_of(queue_size=6, same_class_negatives=True)
    seen = scene(0, None, None, None)
    loss(STUDENT, TEACHER, seen)
    keys = [*unit(TEACHER), *unit(TEACHER)]
    allowed = {0: [0, 1, 2, 3, 4, 5, 6, 7], 1: [0, 1, 4], 2: [0, 2, 4], 3: [0, 3, 4]}
    assert loss(STUDENT, TEACHER, seen).item() == pytest.approx(by_hand(allowed, keys), rel=1e-4)


def test_evaluation_leaves_the_queue_alone() -> None:
    loss = loss_of(queue_size=6).eval()
    loss(STUDENT, TEACHER, scene(0, 1, None, None))
    assert loss.cursor == 0
    assert not loss.keys.any()


def test_gradients_reach_the_student_side_alone() -> None:
    """In training mode, where the queue changes between forward and backward."""
    loss = loss_of(queue_size=6)
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher, scene(0, 1, None, None))
    loss(student, teacher, scene(0, 1, None, None)).backward()
    assert student.grad.any()
    assert loss.embed.weight.grad.any()
    assert teacher.grad is None
    assert [name for name, _ in loss.named_parameters()] == ["embed.weight", "embed.bias"]


def test_maps_of_other_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same cells, got \[1, 2, 1, 3\], \[1, 2, 1, 4\] and \[1, 1, 4\]"):
        loss_of()(STUDENT[..., :3], TEACHER, scene(0, 1, None, None))


def test_the_teacher_embedding_is_orthogonal_and_fixed() -> None:
    made = DenseContrastLoss(3, 8, ContrastLossConfig(embedding_channels=5, queue_size=2))
    assert torch.allclose(made.teacher_projection.T @ made.teacher_projection, torch.eye(5), atol=1e-5)
    assert set(made.state_dict()) >= {"teacher_projection", "keys", "key_class", "cursor"}
    narrow = DenseContrastLoss(3, 4, ContrastLossConfig(embedding_channels=9, queue_size=2))
    assert narrow.keys.shape == (2, 4)


def _one_of_two(rank: int, folder: Path) -> None:
    """Two training steps; process 1 has ground alone in the first one."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    sign = 1 - 2 * rank
    term = loss_of(queue_size=9)
    first = term(STUDENT, sign * TEACHER, scene(0, None, None, None) if rank == 0 else scene(None, None, None, None))
    second = term(STUDENT, sign * TEACHER, scene(2, 0, None, None) if rank == 0 else scene(0, None, None, 5))
    torch.save({"losses": [first.item(), second.item()], **term.state_dict()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_keys_of_other_processes_are_negatives_and_every_process_queues_them(tmp_path: Path) -> None:
    multiprocessing.spawn(_one_of_two, (tmp_path,), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    mine, theirs = unit(TEACHER), unit(-TEACHER)
    # Process 0: its object has the ground of both as negatives; its ground has the object.
    allowed = {0: [0, 1, 2, 3, 4, 5, 6, 7], 1: [0, 1], 2: [0, 2], 3: [0, 3]}
    assert zero["losses"][0] == pytest.approx(by_hand(allowed, [*mine, *theirs]), rel=1e-4)
    # Process 1: four cells of ground, whose negative is the object of process 0, key 4 here.
    allowed = {cell: [cell, 4] for cell in range(4)}
    assert one["losses"][0] == pytest.approx(by_hand(allowed, [*theirs, *mine]), rel=1e-4)
    for name in ("keys", "key_class", "cursor"):
        assert torch.equal(zero[name], one[name])
    # Sixteen keys were queued in rank order into nine slots, objects of a process first; the first step filled 0 to 7.
    assert zero["cursor"] == 16 % 9
    assert sorted(zero["key_class"].tolist()) == sorted([2, 0, -1, -1, 0, 5, -1, -1, -1])
    assert zero["key_class"][8] in (2, 0)
