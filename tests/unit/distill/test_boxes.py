"""Box distillation by hand, on a grid of 3 rows and 5 columns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.distill.losses.boxes import box_kd_loss, require_same_grid
from bevkd_deploy.geometry.grid import BevGrid
from bevkd_deploy.models.center_head import BOX_MAPS

ROWS, COLUMNS = 3, 5


def maps_of(values: Tensor) -> dict[str, Tensor]:
    """[B, 10, Y, X] as the head's regression maps."""
    return dict(zip(BOX_MAPS, values.split(list(BOX_MAPS.values()), dim=1), strict=True))


def targets_of(*frames: dict[int, bool]) -> dict[str, Tensor]:
    """Per frame: flat cell of each object, and whether its velocity is known."""
    cell, mask = torch.zeros(len(frames), 4, dtype=torch.long), torch.zeros(len(frames), 4, 10)
    for index, objects in enumerate(frames):
        for slot, (flat, known) in enumerate(objects.items()):
            cell[index, slot] = flat
            mask[index, slot, : 10 if known else 8] = 1
    return {"cell": cell, "mask": mask}


def logits_of(*frames: dict[tuple[int, int], float]) -> Tensor:
    """Two classes; probability of (class, flat cell), next to nothing elsewhere."""
    logits = torch.full((len(frames), 2, ROWS * COLUMNS), -20.0)
    for index, cells in enumerate(frames):
        for (number, flat), probability in cells.items():
            logits[index, number, flat] = math.log(probability / (1 - probability))
    return logits.view(len(frames), 2, ROWS, COLUMNS)


def loss_of(teacher_values: Tensor, logits: Tensor, targets: dict[str, Tensor], peak_score: float | None) -> float:
    student = maps_of(torch.zeros(len(logits), 10, ROWS, COLUMNS))
    return box_kd_loss(student, maps_of(teacher_values), logits, targets, peak_score=peak_score).item()


def test_one_object_by_hand() -> None:
    """All ten channels are off by 2: eight count 1, the two velocities 0.2; the teacher is sure to 0.5."""
    values = torch.full((1, 10, ROWS, COLUMNS), 2.0)
    targets, logits = targets_of({7: True}), logits_of({(1, 7): 0.5})
    assert loss_of(values, logits, targets, None) == pytest.approx(0.5 * 2 * (8 + 2 * 0.2))
    unknown = targets_of({7: False})
    assert loss_of(values, logits, unknown, None) == pytest.approx(0.5 * 2 * 8)


def test_cells_are_rows_times_columns() -> None:
    """Only the cell of row 1, column 2 is off."""
    values = torch.zeros(1, 10, ROWS, COLUMNS)
    values[0, 3, 1, 2] = 3.0
    logits = logits_of({(0, 7): 0.8, (0, 11): 0.8})
    assert loss_of(values, logits, targets_of({7: True}), None) == pytest.approx(0.8 * 3)
    assert loss_of(values, logits, targets_of({11: True}), None) == 0


def test_the_teachers_peaks_teach_where_the_truth_has_nothing() -> None:
    values = torch.ones(1, 10, ROWS, COLUMNS)
    # An object at cell 0; peaks at 4 (0.6) and 14 (0.2); cell 3 is confident and no peak, beside a higher one.
    logits = logits_of({(0, 0): 0.9, (1, 4): 0.6, (1, 3): 0.5, (0, 14): 0.2})
    targets = targets_of({0: True})
    per_cell = 8.4
    assert loss_of(values, logits, targets, None) == pytest.approx(0.9 * per_cell)
    assert loss_of(values, logits, targets, 0.25) == pytest.approx((0.9 + 0.6) / 2 * per_cell)
    assert loss_of(values, logits, targets, 0.1) == pytest.approx((0.9 + 0.6 + 0.2) / 3 * per_cell)


def test_a_peak_on_an_object_counts_once_and_hides_no_unknown_velocity() -> None:
    values = torch.ones(1, 10, ROWS, COLUMNS)
    logits = logits_of({(0, 7): 0.5})
    assert loss_of(values, logits, targets_of({7: False}), 0.25) == pytest.approx(0.5 * 8)


def test_two_objects_in_one_cell_are_one_cell_and_one_unknown_velocity_masks_it() -> None:
    values = torch.ones(1, 10, ROWS, COLUMNS)
    logits = logits_of({(0, 7): 0.5})
    both = targets_of({7: True})
    both["cell"][0, 1] = 7
    both["mask"][0, 1] = 1
    assert loss_of(values, logits, both, None) == pytest.approx(0.5 * 8.4)
    values[0, 0, 0, 0] = 4.0
    logits[0, 1, 0, 0] = 0.0
    both["cell"][0, 2], both["mask"][0, 2] = 0, 1
    assert loss_of(values, logits, both, None) == pytest.approx(0.5 * (8.4 + 8.4 + 3) / 2)
    both["mask"][0, 1, 8:] = 0
    assert loss_of(values, logits, both, None) == pytest.approx(0.5 * (8 + 8.4 + 3) / 2)


def test_the_mean_is_over_all_cells_of_the_batch() -> None:
    values = torch.zeros(2, 10, ROWS, COLUMNS)
    values[0, 0] = 1.0
    logits = logits_of({(0, 1): 0.5, (0, 14): 0.5}, {(1, 3): 0.5})
    targets = targets_of({1: True, 14: True}, {3: True})
    assert loss_of(values, logits, targets, None) == pytest.approx((0.5 + 0.5) / 3)


def test_without_any_cell_value_and_gradient_are_zero() -> None:
    values = torch.randn(1, 10, ROWS, COLUMNS, requires_grad=True)
    teacher = maps_of(torch.randn(1, 10, ROWS, COLUMNS))
    loss = box_kd_loss(maps_of(values), teacher, logits_of({}), targets_of({}), peak_score=0.25)
    loss.backward()
    assert loss == 0
    assert values.grad is not None and not values.grad.any()


def test_padding_slots_are_no_objects_of_cell_zero() -> None:
    values = torch.ones(1, 10, ROWS, COLUMNS)
    logits = logits_of({(0, 0): 0.9, (0, 7): 0.5})
    assert loss_of(values, logits, targets_of({7: True}), None) == pytest.approx(0.5 * 8.4)


def test_grids_must_agree() -> None:
    grid = BevGrid((-16.0, 16.0), (-12.0, 12.0), 2.0)
    require_same_grid(grid, BevGrid((-16.0, 16.0), (-12.0, 12.0), 2.0))
    for other in (BevGrid((-16.0, 16.0), (-12.0, 12.0), 1.0), BevGrid((-16.0, 16.0), (-14.0, 10.0), 2.0)):
        with pytest.raises(UsageError, match=r"the teacher has BevGrid\(.*the student BevGrid\(.*Take out"):
            require_same_grid(grid, other)
