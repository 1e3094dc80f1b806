"""The image neck and the gather view transform, against slow references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.models.camera import GatherViewTransform, ImageNeck

MakeInputs = Callable[[GraphSpec, int], dict[str, Tensor]]


def test_the_neck_adds_coarser_maps_to_finer_ones() -> None:
    neck = ImageNeck([1, 2, 1], 1)
    neck.fpn_conv = nn.Identity()
    with torch.no_grad():
        for conv, weights in zip(neck.lateral_convs, ([1.0], [1.0, 10.0], [100.0]), strict=True):
            conv.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
            conv.bias.zero_()
    fine = torch.arange(32.0).view(1, 1, 4, 8)
    middle = torch.stack([torch.arange(8.0).view(2, 4), torch.ones(2, 4)])[None]
    coarse = torch.tensor([[[[1.0, 2.0]]]])
    out = neck([fine, middle, coarse])[0, 0]
    for row in range(4):
        for column in range(8):
            mid = (row // 2) * 4 + column // 2 + 10
            assert out[row, column] == row * 8 + column + mid + 100 * (1 + column // 4)


@pytest.fixture
def transform(tiny_spec: GraphSpec) -> GatherViewTransform:
    torch.manual_seed(0)
    made = GatherViewTransform(5, 4, tiny_spec).eval()
    made.downsample = nn.Identity()
    return made


def slow_reference(
    lifted: Tensor, lut_pixel: Tensor, lut_depth: Tensor, spec: GraphSpec, channels: int
) -> list[list[list[float]]]:
    """bev[sample][cell][channel]: decode each entry into camera, row, column and bin, and add up one by one."""
    cameras, (height, width), bins = len(spec.cameras), spec.feature_shape_hw, spec.depth_bins
    bev = []
    for sample in range(len(lut_pixel)):
        cells = [[0.0] * channels for _ in range(lut_pixel.shape[2])]
        for level in range(lut_pixel.shape[1]):
            for cell in range(lut_pixel.shape[2]):
                pixel, entry = int(lut_pixel[sample, level, cell]), int(lut_depth[sample, level, cell])
                if pixel == spec.pixel_dump_index:
                    continue
                camera, row, column = pixel // (height * width), pixel // width % height, pixel % width
                vector = lifted[sample * cameras + camera, :, row, column].tolist()
                exponentials = [math.exp(value) for value in vector[:bins]]
                weight = exponentials[entry % bins] / sum(exponentials)
                for channel in range(channels):
                    cells[cell][channel] += weight * vector[bins + channel]
        bev.append(cells)
    return bev


def test_the_gather_equals_a_loop(
    transform: GatherViewTransform, tiny_spec: GraphSpec, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(tiny_spec, 2)
    features = torch.randn(2 * 2, 5, *tiny_spec.feature_shape_hw)
    with torch.no_grad():
        bev = transform(features, inputs["lut_pixel"], inputs["lut_depth"])
        lifted = transform.depthnet(features)
    expected = torch.tensor(slow_reference(lifted, inputs["lut_pixel"], inputs["lut_depth"], tiny_spec, 4))
    assert bev.shape == (2, 4, 12, 16)
    assert torch.allclose(bev, expected.transpose(1, 2).reshape(2, 4, 12, 16), atol=1e-5)
    hidden = (torch.arange(12 * 16) % 3 == 0).view(12, 16)
    assert not bev[:, :, hidden].any()
    assert (bev[:, :, ~hidden].abs().amax(dim=1) > 0).all()


def test_dump_rows_read_zero_whatever_the_features(
    transform: GatherViewTransform, tiny_spec: GraphSpec, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(tiny_spec, 1)
    pixel = torch.full_like(inputs["lut_pixel"], tiny_spec.pixel_dump_index)
    depth = torch.full_like(inputs["lut_depth"], tiny_spec.depth_dump_index)
    features = torch.randn(2, 5, *tiny_spec.feature_shape_hw) * 100
    with torch.no_grad():
        assert not transform(features, pixel, depth).any()
        # One dump entry is enough: a table that disagrees with the other must not read a neighbour's value.
        assert not transform(features, pixel, inputs["lut_depth"]).any()
        assert not transform(features, inputs["lut_pixel"], depth).any()


def test_gradients_reach_context_and_depth(
    transform: GatherViewTransform, tiny_spec: GraphSpec, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(tiny_spec, 1)
    features = torch.randn(2, 5, *tiny_spec.feature_shape_hw)
    transform(features, inputs["lut_pixel"], inputs["lut_depth"]).pow(2).sum().backward()
    gradient = transform.depthnet[1].weight.grad
    assert gradient is not None
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()
