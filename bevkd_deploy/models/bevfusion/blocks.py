"""The small convolution that the image pyramid and the head share."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def conv_module(conv: nn.Conv1d | nn.Conv2d, norm: type[nn.BatchNorm1d | nn.BatchNorm2d]) -> nn.Sequential:
    """A convolution, batch norm and ReLU under the names of mmcv's ConvModule."""
    parts = {"conv": conv, "bn": norm(conv.out_channels), "activate": nn.ReLU(inplace=False)}
    return nn.Sequential(OrderedDict(parts))
