"""ResNet with torchvision's parameter names, so that ImageNet weights load key for key.

Source of the architecture and the names: He et al. 2016 (arXiv 1512.03385), torchvision.models.resnet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Blocks in layer1..layer4. resnet10 is the usual one-block-a-stage variant.
DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, channels, H / stride, W / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a residual; the stride is the 3x3's (mmdet's style "pytorch")."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, 4 * channels, H / stride, W / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + identity)


class ResNet(nn.Module):
    """Backbone that returns the maps of strides `first_stride`, ..., 32."""

    def __init__(self, name: str, base_channels: int, first_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block = Bottleneck if name == "resnet50" else BasicBlock
        channels = base_channels
        self.stages: list[str] = []
        self.out_channels: list[int] = []
        for index, depth in enumerate(DEPTHS[name]):
            inner = base_channels * 2**index
            out = block.expansion * inner
            blocks = [block(channels, inner, 1 if index == 0 else 2)]
            blocks += [block(out, inner, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            channels = out
            if 4 * 2**index >= first_stride:
                self.stages.append(f"layer{index + 1}")
                self.out_channels.append(out)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised RGB [N, 3, H, W] -> one map per stride from `first_stride` to 32."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        maps = []
        for index in range(4):
            name = f"layer{index + 1}"
            x = getattr(self, name)(x)
            if name in self.stages:
                maps.append(x)
        return maps
