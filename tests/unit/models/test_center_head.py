"""Decoding by hand, on a grid of 12 rows and 16 columns of 2 m; and the inverse of encoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.targets import center_targets
from bevkd_deploy.models.center_head import BOX_MAPS, CenterHead


def head_of(spec: GraphSpec, peak_kernel: int = 3) -> CenterHead:
    return CenterHead(8, 8, peak_kernel, spec)


def flat_maps(batch: int = 1) -> dict[str, Tensor]:
    sizes = {"heatmap": len(CLASS_NAMES), **BOX_MAPS}
    maps = {name: torch.zeros(batch, size, 12, 16) for name, size in sizes.items()}
    maps["heatmap"] -= 10
    return maps


def put_box(maps: dict[str, Tensor], sample: int, row: int, column: int) -> None:
    """l, w, h = 4, 2, 1.5 at height -1.2, turned by 2.2, moving at (1.5, -0.5)."""
    values = {
        "reg": (0.65, 0.45),
        "height": (-1.2,),
        "dim": (math.log(4), math.log(2), math.log(1.5)),
        "rot": (math.sin(2.2), math.cos(2.2)),
        "vel": (1.5, -0.5),
    }
    for name, channels in values.items():
        maps[name][sample, :, row, column] = torch.tensor(channels)


def test_a_peak_becomes_the_box_worked_out_by_hand(tiny_spec: GraphSpec) -> None:
    maps = flat_maps(batch=2)
    maps["heatmap"][1, 7, 4, 10] = 2.0
    put_box(maps, 1, 4, 10)
    boxes, scores, labels = head_of(tiny_spec).decode(maps)
    assert boxes.shape == (2, 20, 9)
    assert scores.shape == labels.shape == (2, 20)
    assert labels.dtype == torch.int32
    # x = (10 + 0.65) * 2 - 16, y = (4 + 0.45) * 2 - 12
    expected = [5.3, -3.1, -1.2, 4.0, 2.0, 1.5, 2.2, 1.5, -0.5]
    assert boxes[1, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert scores[1, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert labels[1, 0] == 7
    assert scores[1, 1] < 1e-4
    assert scores[0].max() < 1e-4


def test_every_class_and_both_corners_are_told_apart(tiny_spec: GraphSpec) -> None:
    maps = flat_maps()
    cells = [(0, 0), (11, 15), (0, 15), (11, 0), (4, 10), (10, 4), (2, 7), (7, 2), (5, 13), (9, 9)]
    for label, (row, column) in enumerate(cells):
        maps["heatmap"][0, label, row, column] = 3.0 - 0.1 * label
    boxes, scores, labels = head_of(tiny_spec).decode(maps)
    assert labels[0, :10].tolist() == list(range(10))
    assert (scores[0].diff() <= 0).all()
    for (row, column), box in zip(cells, boxes[0, :10], strict=True):
        assert box[:2].tolist() == pytest.approx([column * 2 - 16, row * 2 - 12])


def test_peaks_silence_their_neighbours_of_the_same_class(tiny_spec: GraphSpec) -> None:
    maps = flat_maps()
    maps["heatmap"][0, 0, 4, 10] = 2.0
    maps["heatmap"][0, 0, 5, 11] = 1.9  # a diagonal neighbour
    maps["heatmap"][0, 0, 4, 8] = 1.8  # two cells away
    maps["heatmap"][0, 1, 4, 9] = 1.7  # beside both, another class
    _, scores, labels = head_of(tiny_spec).decode(maps)
    kept = torch.sigmoid(torch.tensor([2.0, 1.8, 1.7]))
    assert scores[0, :3].tolist() == pytest.approx(kept.tolist())
    assert labels[0, :3].tolist() == [0, 0, 1]
    assert scores[0, 3] < 1e-4
    _, all_scores, _ = head_of(tiny_spec, peak_kernel=1).decode(maps)
    assert (all_scores[0] > 0.5).sum() == 4
    _, wide_scores, _ = head_of(tiny_spec, peak_kernel=5).decode(maps)
    assert (wide_scores[0] > 0.5).sum() == 2


def test_saturated_neighbours_are_still_told_apart(tiny_spec: GraphSpec) -> None:
    """Sigmoids of 30 and 40 are both 1.0 in float32."""
    maps = flat_maps()
    maps["heatmap"][0, 0, 4, 10], maps["heatmap"][0, 0, 4, 11] = 40.0, 30.0
    boxes, scores, _ = head_of(tiny_spec).decode(maps)
    assert (scores[0] > 0.5).sum() == 1
    assert boxes[0, 0, 0] == 10 * 2 - 16


def test_decoding_undoes_encoding(tiny_spec: GraphSpec) -> None:
    generator = np.random.default_rng(3)
    cells = generator.permutation(6 * 8)[:10]  # one cell of each 2 x 2 block: no two are neighbours of one class
    x = (cells % 8 * 2 + generator.uniform(0, 1, 10)) * 2 - 16
    y = (cells // 8 * 2 + generator.uniform(0, 1, 10)) * 2 - 12
    sizes, rest = generator.uniform(0.5, 9, (10, 3)), generator.uniform(-3, 3, (10, 4))
    boxes = np.column_stack([x, y, rest[:, :1], sizes, rest[:, 1:]])
    labels = generator.permutation(10)
    targets = center_targets(boxes, labels, tiny_spec, 1)

    maps = flat_maps()
    maps["heatmap"] = torch.from_numpy(targets["heatmap"])[None] * 20 - 10
    stacked = torch.zeros(10, 12 * 16)
    stacked[:, targets["cell"][:10]] = torch.from_numpy(targets["values"][:10]).T
    split = stacked.view(1, 10, 12, 16).split(list(BOX_MAPS.values()), dim=1)
    maps.update(dict(zip(BOX_MAPS, split, strict=True)))
    decoded, scores, found = (tensor[0].numpy() for tensor in head_of(tiny_spec).decode(maps))
    assert (scores > 0.9).sum() == 10
    order, expected = np.argsort(found[:10]), np.argsort(labels)
    assert np.array_equal(found[:10][order], labels[expected])
    assert decoded[:10][order] == pytest.approx(boxes[expected], abs=1e-4)


def test_the_head_starts_out_quiet_and_gives_every_map(tiny_spec: GraphSpec) -> None:
    torch.manual_seed(0)
    head = head_of(tiny_spec)
    maps = head(torch.randn(2, 8, 12, 16))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "heatmap": (2, 10, 12, 16),
        **{name: (2, size, 12, 16) for name, size in BOX_MAPS.items()},
    }
    assert head.heatmap[-1].bias.tolist() == pytest.approx([-2.19] * 10)
    assert sum(BOX_MAPS.values()) == 10
