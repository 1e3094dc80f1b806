"""Small pieces that several modules share."""

from __future__ import annotations

from torch import nn


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, eps: float = 1e-5
) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; padding keeps the size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels, eps),
        nn.ReLU(inplace=False),  # in-place would rewrite a tensor that a distillation tap has captured
    )
