"""BEVFusion's trunk: order of the sensors, sizes of the levels, the numbers of mmdet3d's batch norm."""

from __future__ import annotations

import torch
from torch import nn

from bevkd_deploy.models.bevfusion.bev import SECOND, SECONDFPN, ConvFuser


def test_the_fuser_takes_maps_in_the_order_of_its_channels() -> None:
    torch.manual_seed(0)
    fuser = ConvFuser((2, 3), 4).eval()
    camera, lidar = torch.rand(1, 2, 5, 7), torch.rand(1, 3, 5, 7)
    with torch.no_grad():
        fuser[0].weight[:, 2:] = 0
        without = fuser([camera, torch.zeros_like(lidar)])
        assert without.shape == (1, 4, 5, 7)
        assert torch.equal(fuser([camera, lidar]), without)
        assert not torch.equal(fuser([torch.rand_like(camera), lidar]), without)


def test_levels_halve_and_the_neck_brings_them_back() -> None:
    backbone = SECOND(4, (6, 8), (1, 2), (1, 2))
    neck = SECONDFPN((6, 8), (3, 5), (1, 2))
    levels = backbone(torch.rand(2, 4, 12, 16))
    assert [tuple(level.shape) for level in levels] == [(2, 6, 12, 16), (2, 8, 6, 8)]
    (fused,) = neck(levels)
    assert fused.shape == (2, neck.out_channels, 12, 16) == (2, 8, 12, 16)
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in block) for block in backbone.blocks]
    assert convolutions == [2, 3]  # one that strides, and the layers


def test_a_deconvolved_level_is_spread_over_its_own_cells() -> None:
    """Stride and kernel are both 2: each coarse cell fills the four cells below it and no other."""
    neck = SECONDFPN((1, 1), (1, 1), (1, 2)).eval()
    coarse = torch.zeros(1, 1, 2, 3)
    coarse[0, 0, 1, 2] = 1.0
    with torch.no_grad():
        neck.deblocks[1][0].weight.fill_(2.0)
        (fused,) = neck([torch.zeros(1, 1, 4, 6), coarse])
    expected = torch.zeros(4, 6)
    expected[2:4, 4:6] = 2.0 / (1 + 1e-3) ** 0.5  # batch norm's eps of SECONDFPN
    torch.testing.assert_close(fused[0, 1], expected)
