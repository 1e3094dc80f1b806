"""Footprints, scenes and sampled cells, on a grid of 12 rows and 16 columns of 2 m."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.distill.losses.cell_sampling import CELLS_PER_INSTANCE, sample_cells, spread
from bevkd_deploy.distill.losses.footprints import inverse_area, object_footprints, owners
from bevkd_deploy.distill.losses.scene import BevScene, describe_scene
from bevkd_deploy.geometry.boxes import points_in_boxes
from bevkd_deploy.geometry.grid import BevGrid

#: A bus turned by 2.2 rad, a car inside its outline, a pedestrian, and a car half outside the range.
OBJECTS = [
    ("bus", [-6.1, 2.3, 0.0, 14.0, 7.0, 3.0, 2.2, 0.0, 0.0]),
    ("car", [-6.9, 3.1, 0.0, 4.6, 2.1, 1.5, 0.3, 0.0, 0.0]),
    ("pedestrian", [9.2, -8.7, 0.0, 0.6, 0.6, 1.8, 1.0, 0.0, 0.0]),
    ("car", [15.9, 0.1, 0.0, 6.0, 4.0, 1.5, 0.0, 0.0, 0.0]),
]


def targets_of(spec: GraphSpec, *frames: list[tuple[str, list[float]]]) -> dict[str, Tensor]:
    made = []
    for objects in frames:
        boxes = np.array([box for _, box in objects], dtype=np.float64).reshape(-1, 9)
        labels = np.array([CLASS_NAMES.index(name) for name, _ in objects], dtype=np.int64)
        made.append(center_targets(boxes, labels, spec, 1))
    return {key: torch.from_numpy(np.stack([frame[key] for frame in made])) for key in made[0]}


def by_geometry(spec: GraphSpec, boxes: list[list[float]], cell_m: float) -> np.ndarray:
    """bool [N, Y, X]: cell centres in boxes, by `points_in_boxes`."""
    grid = BevGrid(BevGrid.bev(spec).x_range_m, BevGrid.bev(spec).y_range_m, cell_m)
    centers = np.concatenate([grid.cell_centers(), np.zeros((math.prod(grid.shape_yx), 1))], axis=1)
    inside = points_in_boxes(centers, np.array(boxes, dtype=np.float64)).T
    return inside.reshape(len(boxes), *grid.shape_yx)


@pytest.mark.parametrize(("cell_m", "shape"), [(2.0, (12, 16)), (4.0, (6, 8)), (1.0, (24, 32))])
def test_footprints_are_the_cells_inside_the_boxes(tiny_spec: GraphSpec, cell_m: float, shape: tuple[int, int]) -> None:
    targets = targets_of(tiny_spec, OBJECTS[:2], OBJECTS)
    found = object_footprints(targets, shape, 2.0)
    assert found.shape == (2, 4, *shape)
    expected = by_geometry(tiny_spec, [box for _, box in OBJECTS], cell_m)
    for slot, (_, box) in enumerate(OBJECTS):  # and the cell of the centre, which a small box may not reach
        expected[slot, int((box[1] + 12) / cell_m), int((box[0] + 16) / cell_m)] = True
    assert np.array_equal(found[1].numpy(), expected)
    assert np.array_equal(found[0, :2].numpy(), expected[:2])
    assert not found[0, 2:].any()
    assert expected[2].sum() == 1


def test_the_smaller_object_owns_a_shared_cell_and_weighs_it(tiny_spec: GraphSpec) -> None:
    footprints = object_footprints(targets_of(tiny_spec, OBJECTS), (12, 16), 2.0)
    bus, car = footprints[0, 0], footprints[0, 1]
    assert (bus & car).sum() >= 2
    owner, weight = owners(footprints)[0], inverse_area(footprints)[0, 0]
    assert (owner[car] == 1).all()
    assert (owner[bus & ~car] == 0).all()
    assert (owner[~footprints[0].any(dim=0)] == -1).all()
    assert weight[car].tolist() == pytest.approx([1 / int(car.sum())] * int(car.sum()))
    assert weight[bus & ~car][0].item() == pytest.approx(1 / int(bus.sum()))
    assert not weight[owner == -1].any()


def test_an_empty_batch_has_neither_owners_nor_weight(tiny_spec: GraphSpec) -> None:
    footprints = object_footprints(targets_of(tiny_spec, [], []), (12, 16), 2.0)
    assert footprints.shape == (2, 0, 12, 16)
    assert (owners(footprints) == -1).all() and owners(footprints).dtype == torch.int64
    assert not inverse_area(footprints).any() and inverse_area(footprints).shape == (2, 1, 12, 16)


def logits_of(*values: tuple[int, int, int, float]) -> Tensor:
    """Probabilities at (class, row, column), one half elsewhere."""
    made = torch.zeros(1, len(CLASS_NAMES), 12, 16)
    for number, row, column, probability in values:
        made[0, number, row, column] = math.log(probability / (1 - probability))
    return made


def test_a_scene_names_objects_ground_and_errors(tiny_spec: GraphSpec) -> None:
    targets = targets_of(tiny_spec, OBJECTS)
    student, teacher = logits_of((3, 0, 0, 0.7)), logits_of((3, 0, 0, 0.8), (5, 0, 1, 0.9))
    options = {"cell_m": 2.0, "shape_yx": (12, 16)}
    scene = describe_scene(targets, student, teacher, hardness="disagreement", **options)
    assert scene.class_id[0][scene.instance[0] == 0].unique().tolist() == [CLASS_NAMES.index("bus")]
    assert scene.class_id[0][scene.instance[0] == 2].tolist() == [CLASS_NAMES.index("pedestrian")]
    assert (scene.class_id[scene.instance == -1] == -1).all()
    # The pedestrian stands in row 1, column 12; beside it the Gaussian of radius 1 is exp(-2) = 0.135.
    assert not scene.clear[0, 1, 12] and not scene.clear[0, 1, 13]
    assert scene.clear[0, 1, 14] and scene.instance[0, 1, 13] == -1
    assert scene.hardness[0, 0, :3].tolist() == pytest.approx([0.1, 0.4, 0.0], abs=1e-6)
    sure = describe_scene(targets, student, teacher, hardness="confidence", **options)
    assert sure.hardness[0, 0, :3].tolist() == pytest.approx([0.8, 0.9, 0.5])
    assert scene.cell_m == 2.0


def test_a_coarser_scene_keeps_the_strongest_of_what_it_covers(tiny_spec: GraphSpec) -> None:
    targets = targets_of(tiny_spec, OBJECTS)
    teacher = logits_of((3, 0, 0, 0.8), (5, 0, 1, 0.9))
    scene = describe_scene(targets, logits_of(), teacher, (6, 8), cell_m=2.0, hardness="disagreement")
    assert scene.instance.shape == scene.clear.shape == scene.hardness.shape == (1, 6, 8)
    assert scene.hardness[0, 0, 0].item() == pytest.approx(0.4)
    assert scene.cell_m == 4.0
    assert not scene.clear[0, 0, 6]
    assert scene.class_id[0, 0, 6] == CLASS_NAMES.index("pedestrian")


def test_spread_takes_turns_over_instances() -> None:
    torch.manual_seed(0)
    instance = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    few = instance[spread(instance, 6)]
    assert Counter(few.tolist()) == {0: 2, 1: 2, 2: 2}
    drawn = spread(instance, 100)
    assert Counter(instance[drawn].tolist()) == {0: CELLS_PER_INSTANCE, 1: 3, 2: CELLS_PER_INSTANCE}
    assert len(set(drawn.tolist())) == len(drawn)
    assert spread(instance[:0], 5).tolist() == []


def test_spread_prefers_no_instance_and_no_cell() -> None:
    torch.manual_seed(0)
    instance = torch.arange(30) // 10
    drawn = torch.cat([spread(instance, 1) for _ in range(600)])
    assert min(Counter(instance[drawn].tolist()).values()) > 150
    assert len(set(drawn.tolist())) == 30


def test_objects_first_then_the_hardest_ground() -> None:
    instance = torch.full((2, 6, 8), -1)
    instance[0, :2] = torch.arange(16).view(2, 8) // 4  # four objects of four cells
    instance[1, 0, 0] = 0
    clear = instance < 0
    clear[:, 2] = False  # near objects
    hardness = torch.arange(48.0).flip(0).view(1, 6, 8).repeat(2, 1, 1)  # falls with the cell
    scene = BevScene(instance, torch.where(instance >= 0, instance + 3, -1), clear, hardness, 2.0)
    torch.manual_seed(0)
    cells = sample_cells(scene, 16)
    first = cells.frame == 0
    assert Counter(cells.instance[first].tolist()) == {0: 3, 1: 3, 2: 3, 3: 3, -1: 4}
    assert cells.cell[first & (cells.instance < 0)].tolist() == [24, 25, 26, 27]
    assert cells.instance[~first].tolist() == [0, -1, -1, -1, -1]  # scarce objects are not made up for by ground
    assert (cells.class_id == torch.where(cells.instance >= 0, cells.instance + 3, -1)).all()
    torch.manual_seed(0)
    assert torch.equal(sample_cells(scene, 16).cell, cells.cell)
