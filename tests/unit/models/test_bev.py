"""Fuser, backbone and neck of the BEV trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bevkd_deploy.models.bev import ConvFuser, Second, SecondFPN


def test_the_fuser_takes_camera_channels_first() -> None:
    torch.manual_seed(0)
    fuser = ConvFuser(2, 3, 4).eval()
    camera, lidar = torch.rand(1, 2, 5, 7), torch.rand(1, 3, 5, 7)
    with torch.no_grad():
        fuser.conv[0].weight[:, 2:] = 0
        without = fuser(camera, torch.zeros_like(lidar))
        assert without.shape == (1, 4, 5, 7)
        assert torch.equal(fuser(camera, lidar), without)
        assert not torch.equal(fuser(torch.rand_like(camera), lidar), without)


def test_each_further_block_halves_the_map() -> None:
    backbone = Second(4, (6, 8, 10), (1, 2, 3))
    maps = backbone(torch.rand(2, 4, 12, 16))
    assert [tuple(x.shape) for x in maps] == [(2, 6, 12, 16), (2, 8, 6, 8), (2, 10, 3, 4)]
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in block.modules()) for block in backbone.blocks]
    assert convolutions == [1, 2, 3]


def test_the_neck_brings_levels_to_the_finest_and_stacks_them(stir_norms: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    neck = SecondFPN((3, 5), 4)
    stir_norms(neck).eval()
    fine, coarse = torch.randn(1, 3, 4, 6), torch.randn(1, 5, 2, 3)
    with torch.no_grad():
        out = neck([fine, coarse])
        assert out.shape == (1, neck.out_channels, 4, 6) == (1, 8, 4, 6)
        assert torch.equal(out[:, :4], neck.deblocks[0](fine))
        # Upsampling first would cost more and give the same.
        early = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert torch.allclose(out[:, 4:], neck.deblocks[1][0](early), atol=1e-6)
