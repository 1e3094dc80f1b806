"""The image pyramid on maps small enough to work out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.models.bevfusion.image_neck import GeneralizedLSSFPN


def summing_neck(in_channels: list[int]) -> GeneralizedLSSFPN:
    """All weights one and norms that change nothing: each convolution is a sum."""
    neck = GeneralizedLSSFPN(in_channels, channels=1).eval()
    for module in neck.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return neck


def run(neck: GeneralizedLSSFPN, *maps: Tensor) -> list[list[list[float]]]:
    with torch.no_grad():
        return [level[0, 0].tolist() for level in neck(maps)]


def test_each_level_takes_up_the_ones_above() -> None:
    levels = run(
        summing_neck([1, 1, 1]), torch.ones(1, 1, 4, 4), torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 1, 1), 3.0)
    )
    assert len(levels) == 2
    assert levels[1] == [[20, 20], [20, 20]]  # 2 + 3, summed over the four cells that a 3x3 kernel finds here
    assert levels[0] == [
        [84, 126, 126, 84],
        [126, 189, 189, 126],
        [126, 189, 189, 126],
        [84, 126, 126, 84],
    ]  # of 1 + 20


def test_a_coarser_level_is_enlarged_between_the_centres_of_its_cells() -> None:
    neck = summing_neck([1, 1])
    identity = torch.zeros(1, 1, 3, 3)
    identity[0, 0, 1, 1] = 1.0
    neck.fpn_convs[0].conv.weight.data = identity
    assert run(neck, torch.zeros(1, 1, 1, 4), torch.tensor([[[[8.0, 16.0]]]])) == [[[8, 10, 14, 16]]]


def test_channels_of_a_level_stand_before_those_from_above() -> None:
    neck = summing_neck([2, 3])
    neck.fpn_convs[0].conv.weight.data = torch.tensor([[[[0.0] * 3, [0.0, 1.0, 0.0], [0.0] * 3]]])
    neck.lateral_convs[0].conv.weight.data = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]).view(1, 5, 1, 1)
    own, above = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1)
    assert run(neck, own, above) == [[[54321.0]]]
