"""BEVFusion's trunk over BEV maps: fuser, SECOND backbone, SECONDFPN neck, with mmdet3d's parameter names.

The student's own trunk (`models.bev`) has the same structure with other names, and a neck without deconvolution.
Maps are [B, C, X, Y] here, as BEVFusion lays them out; nothing in this file depends on it.

Source: mmdet3d 1.4.0 (SECOND, SECONDFPN) and its projects/BEVFusion (ConvFuser), at open-mmlab/mmdetection3d@fe25f7a.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd_deploy.models.blocks import conv_norm_relu

#: Of the batch norms of SECOND and SECONDFPN; the rest of BEVFusion keeps PyTorch's 1e-5.
SECOND_EPS = 1e-3


class ConvFuser(nn.Sequential):
    """Concatenate the maps of all sensors, camera first, then one 3x3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(*conv_norm_relu(sum(in_channels), out_channels))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, X, Y] of each sensor -> [B, out, X, Y]."""
        fused: Tensor = super().forward(torch.cat(list(inputs), dim=1))
        return fused


class SECOND(nn.Module):
    """Blocks of 3x3 convolutions at strides 1 and 2: each a first convolution and `layers` more.

    Every block is one flat sequence, so that layers are numbered as mmdet3d numbers them (`blocks.0.3`).
    """

    def __init__(
        self,
        in_channels: int = 256,
        channels: Sequence[int] = (128, 256),
        layers: Sequence[int] = (5, 5),
        strides: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        blocks = []
        for out, depth, stride in zip(channels, layers, strides, strict=True):
            steps = list(conv_norm_relu(in_channels, out, stride=stride, eps=SECOND_EPS))
            for _ in range(depth):
                steps += conv_norm_relu(out, out, eps=SECOND_EPS)
            blocks.append(nn.Sequential(*steps))
            in_channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, in, X, Y] -> one map per block, each at its stride below the one before."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return tuple(maps)


class SECONDFPN(nn.Module):
    """Bring every level to the finest size by a deconvolution (1x1 convolution at stride 1) and concatenate."""

    def __init__(
        self,
        in_channels: Sequence[int] = (128, 256),
        channels: Sequence[int] = (256, 256),
        strides: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        deblocks = []
        for width, out, stride in zip(in_channels, channels, strides, strict=True):
            upsample = (
                nn.Conv2d(width, out, 1, bias=False)
                if stride == 1
                else nn.ConvTranspose2d(width, out, stride, stride, bias=False)
            )
            deblocks.append(nn.Sequential(upsample, nn.BatchNorm2d(out, SECOND_EPS), nn.ReLU(inplace=False)))
        self.deblocks = nn.ModuleList(deblocks)
        self.out_channels = sum(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels of SECOND -> a list of one map [B, out_channels, X, Y], as mmdet3d's necks return it."""
        return [torch.cat([deblock(x) for deblock, x in zip(self.deblocks, maps, strict=True)], dim=1)]
