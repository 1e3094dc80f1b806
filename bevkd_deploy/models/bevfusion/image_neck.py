"""BEVFusion's image pyramid: each level takes up the one above it, enlarged and concatenated.

Source: mit-han-lab/bevfusion (arXiv 2205.13542), GeneralizedLSSFPN as in open-mmlab/mmdetection3d@fe25f7a,
projects/BEVFusion/bevfusion/bevfusion_necks.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bevkd_deploy.models.bevfusion.blocks import conv_module


class GeneralizedLSSFPN(nn.Module):
    """Top-down pyramid of one level less than it is given."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        above = [*[channels] * (len(in_channels) - 2), in_channels[-1]]  # what each level finds above itself
        self.lateral_convs = nn.ModuleList(
            [_conv(own + more, channels, 1) for own, more in zip(in_channels[:-1], above, strict=True)]
        )
        self.fpn_convs = nn.ModuleList([_conv(channels, channels, 3) for _ in above])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, h, w] of falling size -> [B, channels, h, w] for each but the last, in the same order."""
        levels = list(maps)
        for index in reversed(range(len(levels) - 1)):
            size = levels[index].shape[2:]
            above = functional.interpolate(levels[index + 1], size=size, mode="bilinear", align_corners=False)
            lateral = self.lateral_convs[index](torch.cat([levels[index], above], dim=1))
            levels[index] = self.fpn_convs[index](lateral)
        return levels[:-1]


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return conv_module(conv, nn.BatchNorm2d)
