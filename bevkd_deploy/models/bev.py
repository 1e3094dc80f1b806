"""BEV trunk: fuser, SECOND backbone, SECONDFPN neck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.models.blocks import conv_norm_relu


class ConvFuser(nn.Module):
    """Concatenate camera and LiDAR maps, then one convolution (BEVFusion, arXiv 2205.13542)."""

    def __init__(self, camera_channels: int, lidar_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv_norm_relu(camera_channels + lidar_channels, out_channels)

    def forward(self, camera_bev: Tensor, lidar_bev: Tensor) -> Tensor:
        """[B, Cc, Y, X], [B, Cl, Y, X] -> [B, out, Y, X]."""
        return self.conv(torch.cat([camera_bev, lidar_bev], dim=1))


class Second(nn.Module):
    """Blocks of 3x3 convolutions; the first keeps the size, each further one halves it (SECOND)."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], layers: tuple[int, ...]) -> None:
        super().__init__()
        blocks = []
        for index, (out, depth) in enumerate(zip(channels, layers, strict=True)):
            first = conv_norm_relu(in_channels, out, stride=1 if index == 0 else 2)
            blocks.append(nn.Sequential(first, *[conv_norm_relu(out, out) for _ in range(depth - 1)]))
            in_channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, C, Y, X] -> one map per block, at 1, 1/2, 1/4, ... of the size."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class SecondFPN(nn.Module):
    """Bring every level to the finest size and concatenate; Resize and convolution instead of deconvolution."""

    def __init__(self, in_channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        deblocks = []
        for index, channels in enumerate(in_channels):
            conv = conv_norm_relu(channels, out_channels, kernel=1)
            # Convolve first: the 1x1 then runs on the small map, and nearest upsampling commutes with it.
            deblocks.append(conv if index == 0 else nn.Sequential(conv, nn.Upsample(scale_factor=2**index)))
        self.deblocks = nn.ModuleList(deblocks)
        self.out_channels = out_channels * len(in_channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels -> [B, out_channels * levels, Y, X]."""
        return torch.cat([deblock(x) for deblock, x in zip(self.deblocks, maps, strict=True)], dim=1)
