"""The TransFusion head on a grid of 12 by 8 cells: proposals, and boxes in metres, both box codings."""

from __future__ import annotations

from collections.abc import Callable
from math import atan2, cos, log, pi, sin

import pytest
import torch
from torch import Tensor

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.transfusion_head import BoxCoding, TransFusionHead

#: 12 cells of 2 m along x, 8 along y.
GEOMETRY = BevFusionGeometry(
    range_m=(-12.0, -8.0, -3.0, 12.0, 8.0, 3.0),
    voxel_size_m=(0.5, 0.5, 0.5),
    bev_stride=4,
    camera_cell_m=1.0,
    proposals=6,
)
CAR, BARRIER, PEDESTRIAN = (GEOMETRY.classes.index(name) for name in ("car", "barrier", "pedestrian"))
CELLS_X, CELLS_Y = 12, 8


@pytest.fixture
def head() -> TransFusionHead:
    torch.manual_seed(0)
    return TransFusionHead(5, GEOMETRY, channels=16).eval()


@pytest.fixture
def hot_head(head: TransFusionHead) -> Callable[[Tensor], dict[str, Tensor]]:
    """Maps of a head whose dense heatmap is replaced by given logits [K, X, Y]; centres stay in their cells."""

    class Given(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.logits[None].expand(len(x), -1, -1, -1)

    def run(logits: Tensor) -> dict[str, Tensor]:
        given = Given()
        given.logits = logits
        head.heatmap_head = given
        with torch.no_grad():
            for name in ("center", "height"):
                last = getattr(head.prediction_heads[0], name)[-1]
                last.weight.zero_()
                last.bias.zero_()
            (maps,) = head([torch.rand(1, 5, CELLS_X, CELLS_Y)])[0]
        return maps

    return run


def empty() -> Tensor:
    return torch.full((len(GEOMETRY.classes), CELLS_X, CELLS_Y), -8.0)


def test_a_box_lands_in_metres_where_its_heatmap_cell_is(
    head: TransFusionHead, hot_head: Callable[[Tensor], dict[str, Tensor]]
) -> None:
    """Off the diagonal of a map that is no square: swapped axes would put the box elsewhere."""
    logits = empty()
    logits[BARRIER, 9, 2] = 6.0
    boxes, scores, labels = head.decode(hot_head(logits))
    assert labels[0, 0] == BARRIER
    assert scores[0, 0] > 10 * scores[0, 1]
    # Cell 9 of 2 m from -12 m along x, cell 2 from -8 m along y, their middles.
    assert boxes[0, 0, :2].tolist() == pytest.approx([-12 + 9.5 * 2, -8 + 2.5 * 2])


def test_a_query_takes_the_features_and_the_position_of_its_cell(
    head: TransFusionHead, hot_head: Callable[[Tensor], dict[str, Tensor]]
) -> None:
    seen: list[tuple[Tensor, ...]] = []
    head.decoder[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    shared: list[Tensor] = []
    head.shared_conv.register_forward_hook(lambda module, inputs, output: shared.append(output))
    logits = empty()
    logits[CAR, 3, 5] = 6.0
    hot_head(logits)
    query, key, query_pos, key_pos = seen[0]
    assert query_pos[0, 0].tolist() == [3.5, 5.5]
    assert torch.equal(key_pos[0, 3 * CELLS_Y + 5], query_pos[0, 0])
    torch.testing.assert_close(key[0, :, 3 * CELLS_Y + 5], shared[0][0, :, 3, 5])
    encoding = head.class_encoding.weight[:, CAR, 0] + head.class_encoding.bias
    torch.testing.assert_close(query[0, :, 0], shared[0][0, :, 3, 5] + encoding)


def test_a_slope_is_one_peak_but_every_cell_of_a_small_class_counts(
    hot_head: Callable[[Tensor], dict[str, Tensor]],
) -> None:
    logits = empty()
    logits[CAR, 4, 4], logits[CAR, 4, 5] = 5.0, 4.0
    logits[PEDESTRIAN, 8, 3], logits[PEDESTRIAN, 8, 4] = 3.0, 2.0
    logits[CAR, 0, 6] = 7.0  # the outermost cells are no peaks
    logits[PEDESTRIAN, 0, 7] = 1.0  # but of a small class they are
    logits[BARRIER, 4, 4], logits[BARRIER, 4, 3] = -6.0, -5.0
    maps = hot_head(logits)
    proposed = torch.stack([maps["query_labels"][0], *(maps["center"][0] - 0.5).round().long()], dim=1).tolist()
    assert proposed[:4] == [[CAR, 4, 4], [PEDESTRIAN, 8, 3], [PEDESTRIAN, 8, 4], [PEDESTRIAN, 0, 7]]
    best = maps["query_heatmap_score"][0, :, 0]
    assert best[CAR] == pytest.approx(1 / (1 + 2.718281828**-5), rel=1e-5)
    assert best[BARRIER] == 0  # this class rises towards the next cell


def test_equal_scores_are_taken_in_the_order_of_their_cells(hot_head: Callable[[Tensor], dict[str, Tensor]]) -> None:
    logits = empty()
    logits[PEDESTRIAN, 1:11, 1:7] = 50.0  # the sigmoid is exactly 1 in all of them
    maps = hot_head(logits)
    assert (maps["center"][0] - 0.5).T.tolist() == [[1, 1], [1, 2], [1, 3], [1, 4], [1, 5], [1, 6]]


def test_proposals_are_the_best_of_a_random_map(head: TransFusionHead) -> None:
    torch.manual_seed(1)
    scores = torch.rand(3, 10, CELLS_X * CELLS_Y) * torch.tensor([1.0, 1e-20, 1e-42])[:, None, None]
    labels, cells = head._proposals(scores)
    expected = scores.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : GEOMETRY.proposals]
    assert torch.equal(labels * CELLS_X * CELLS_Y + cells, expected)


def coded(coding: BoxCoding, box: list[float], center: tuple[float, float]) -> dict[str, Tensor]:
    """What a head of this coding puts out for one query of class car at a box, certain of it."""
    _, _, z, length, width, up, yaw, vx, vy = box
    if coding == "mit":
        size, angle, height = (width, length, up), -yaw - pi / 2, z + up / 2
    else:
        size, angle, height = (length, width, up), yaw, z
    column = {
        "center": center,
        "height": (height,),
        "dim": [log(side) for side in size],
        "rot": (3 * sin(angle), 3 * cos(angle)),  # its length means nothing
        "vel": (vx, vy),
        "heatmap": [40.0] * len(GEOMETRY.classes),
        "query_heatmap_score": [0.75 if k == CAR else 0.5 for k in range(len(GEOMETRY.classes))],
    }
    maps = {name: torch.tensor(values, dtype=torch.float32)[None, :, None] for name, values in column.items()}
    return {**maps, "query_labels": torch.tensor([[CAR]])}


@pytest.mark.parametrize("coding", ["mmdet3d", "mit"])
@pytest.mark.parametrize("yaw", [0.3, -2.9, 1.6, -1.5])
def test_a_box_comes_back_from_its_code(coding: BoxCoding, yaw: float) -> None:
    box = [5.0, -3.0, -0.4, 4.5, 1.9, 1.6, yaw, 2.0, -1.0]
    head = TransFusionHead(5, GEOMETRY, coding, channels=16)
    boxes, scores, labels = head.decode(coded(coding, box, ((5 + 12) / 2, (-3 + 8) / 2)))
    torch.testing.assert_close(boxes[0, 0], torch.tensor(box))
    assert scores.tolist() == [[0.75]]
    assert labels.tolist() == [[CAR]]
    assert atan2(sin(yaw), cos(yaw)) == pytest.approx(float(boxes[0, 0, 6]), abs=1e-6)


def test_a_box_outside_of_the_post_centre_range_scores_nothing() -> None:
    """Its lower face counts in mmdet3d's coding: a centre just above the lower limit is out."""
    limits = (-12.0, -8.0, -1.0, 12.0, 8.0, 3.0)
    head = TransFusionHead(5, GEOMETRY.model_copy(update={"post_center_range_m": limits}), channels=16)
    center = (6.0, 4.0)

    def score(z: float, center: tuple[float, float] = center) -> float:
        return float(head.decode(coded("mmdet3d", [0, 0, z, 4.0, 2.0, 1.0, 0, 0, 0], center))[1])

    assert score(-0.4) == 0.75
    assert score(-0.6) == 0
    assert score(0.0, (6.0, 8.2)) == 0
    assert score(0.0, (12.2, 4.0)) == 0


def test_decoding_leaves_the_maps_as_they_are(head: TransFusionHead) -> None:
    with torch.no_grad():
        (maps,) = head([torch.randn(2, 5, CELLS_X, CELLS_Y)])[0]
        before = {name: value.clone() for name, value in maps.items()}
        boxes, scores, labels = head.decode(maps)
    assert all(torch.equal(maps[name], before[name]) for name in before)
    assert boxes.shape == (2, GEOMETRY.proposals, 9)
    assert (scores.diff(dim=1) <= 0).all()
    assert labels.dtype == torch.int64


def test_a_batch_is_its_frames(head: TransFusionHead) -> None:
    torch.manual_seed(2)
    bev = torch.randn(2, 5, CELLS_X, CELLS_Y)
    with torch.no_grad():
        (both,) = head([bev])[0]
        for index in range(2):
            (alone,) = head([bev[index : index + 1]])[0]
            for name, value in alone.items():
                torch.testing.assert_close(value[0], both[name][index], atol=1e-5, rtol=1e-5)
