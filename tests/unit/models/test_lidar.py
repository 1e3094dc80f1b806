"""Pillar features and their place on the canvas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.lidar import PillarEncoder, PillarScatter

MakeConfig = Callable[..., ModelConfig]


def index_of(*cells: int) -> Tensor:
    return torch.tensor([cells], dtype=torch.int32)


def test_the_ten_features_of_a_point(tiny_spec: GraphSpec) -> None:
    points = torch.zeros(1, 2, 6, 5)
    points[0, 0, 0] = torch.tensor([-13.25, -9.5, 1.0, 51.0, 0.1])
    points[0, 0, 1] = torch.tensor([-13.75, -9.0, 2.0, 255.0, 0.2])
    index = index_of(2 * 32 + 2, tiny_spec.pillar_dump_index)  # row 2, column 2: centre (-13.5, -9.5)
    features = PillarEncoder(8, tiny_spec)._decorate(points, torch.tensor([[2, 0]], dtype=torch.int32), index)
    # Mean (-13.5, -9.25, 1.5).
    first = [-1.325, -0.95, 0.1, 0.2, 0.1, 0.25, -0.25, -0.5, 0.25, 0.0]
    second = [-1.375, -0.9, 0.2, 1.0, 0.2, -0.25, 0.25, 0.5, -0.25, 0.5]
    assert features[0, 0, 0].tolist() == pytest.approx(first, abs=1e-6)
    assert features[0, 0, 1].tolist() == pytest.approx(second, abs=1e-6)


def test_every_cell_of_a_large_canvas_has_its_centre(tiny_model_config: MakeConfig) -> None:
    """Row and column come from a float division, which must be right for each of 512 x 384 cells."""
    config = tiny_model_config(
        range_m=(-38.4, -51.2, -3.0, 38.4, 51.2, 3.0),
        pillar_size_m=0.2,
        lidar={"max_pillars": 512 * 384, "max_points": 1},
    )
    spec = config.graph_spec(("CAM_FRONT",))
    rows, columns = spec.pillar_shape_yx
    assert (rows, columns) == (512, 384)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = -38.4 + (column.double() + 0.5) * 0.2, -51.2 + (row.double() + 0.5) * 0.2
    points = torch.zeros(1, rows * columns, 1, 5)
    points[0, :, 0, 0], points[0, :, 0, 1] = x.flatten().float(), y.flatten().float()
    index = torch.arange(rows * columns, dtype=torch.int32)[None]
    features = PillarEncoder(8, spec)._decorate(points, torch.ones_like(index), index)
    assert features[0, :, 0, 8:].abs().max() < 1e-4


def test_padding_slots_are_ignored(tiny_model_config: MakeConfig, stir_norms: Callable[[nn.Module], nn.Module]) -> None:
    """The same points in pillars of 3 slots and of 6 give the same features."""
    torch.manual_seed(0)
    narrow = tiny_model_config(lidar={"max_points": 3, "max_pillars": 4}).graph_spec(("CAM_FRONT",))
    wide = tiny_model_config(lidar={"max_points": 6, "max_pillars": 4}).graph_spec(("CAM_FRONT",))
    encoder = PillarEncoder(8, narrow)
    stir_norms(encoder).eval()
    same = PillarEncoder(8, wide).eval()
    same.load_state_dict(encoder.state_dict())
    count = torch.tensor([[3, 1, 2, 0]], dtype=torch.int32)
    points = torch.rand(1, 4, 3, 5) * (torch.arange(3) < count[..., None])[..., None]
    index = index_of(5, 40, 700, narrow.pillar_dump_index)
    with torch.no_grad():
        features = encoder(points, count, index)
        padded = same(nn.functional.pad(points, (0, 0, 0, 3)), count, index)
        alone = encoder(points[:, 1:2], count[:, 1:2], index[:, 1:2])
    assert features.shape == (1, 4, 8)
    assert features[0, :3].abs().sum() > 0
    assert torch.allclose(features[:, :3], padded[:, :3], atol=1e-6)
    assert torch.allclose(features[:, 1:2], alone, atol=1e-6)


def test_a_pillar_keeps_the_largest_response_of_its_points(tiny_spec: GraphSpec) -> None:
    torch.manual_seed(0)
    encoder = PillarEncoder(8, tiny_spec).eval()
    points, count, index = torch.rand(1, 1, 6, 5), torch.tensor([[6]], dtype=torch.int32), index_of(100)
    decorated = encoder._decorate(points, count, index)
    with torch.no_grad():
        conv = encoder.pfn_layers[0][0].weight[:, :, 0, 0]
        responses = torch.relu(decorated[0, 0] @ conv.T / (1 + 1e-5) ** 0.5)
        assert torch.allclose(encoder(points, count, index)[0, 0], responses.amax(dim=0), atol=1e-6)


def test_scatter_puts_features_at_row_and_column(tiny_spec: GraphSpec) -> None:
    scatter = PillarScatter(2, 8, tiny_spec)
    scatter.down = nn.Identity()
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [9.0, 9.0], [9.0, 9.0]]])
    dump = tiny_spec.pillar_dump_index
    index = torch.cat([index_of(3 * 32 + 20, 23 * 32 + 31, dump), index_of(7, dump, dump)])
    canvas = scatter(features, index)
    assert canvas.shape == (2, 2, 24, 32)
    assert canvas[0, :, 3, 20].tolist() == [1, 2]
    assert canvas[0, :, 23, 31].tolist() == [3, 4]
    assert canvas[1, :, 0, 7].tolist() == [5, 6]
    assert canvas.sum() == 1 + 2 + 3 + 4 + 5 + 6  # nothing of the dump row


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_strided_convolutions_lead_to_the_bev_map(tiny_model_config: MakeConfig, stride: int) -> None:
    spec = tiny_model_config(pillar_size_m=1.0, stride=stride).graph_spec(("CAM_FRONT",))
    scatter = PillarScatter(3, 5, spec)
    out = scatter(torch.rand(1, 2, 3), index_of(0, 33))
    assert out.shape == (1, 5, *spec.bev_shape_yx) == (1, 5, 24 // stride, 32 // stride)


def test_padding_gives_no_gradient_to_real_cells(tiny_spec: GraphSpec) -> None:
    scatter = PillarScatter(2, 8, tiny_spec)
    features = torch.rand(1, 2, 2, requires_grad=True)
    scatter(features, index_of(50, tiny_spec.pillar_dump_index)).pow(2).sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0].abs().sum() > 0
    assert not features.grad[0, 1].any()
