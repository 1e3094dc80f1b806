"""LiDAR branch: pillar feature net and scatter to the BEV map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.models.blocks import conv_norm_relu

#: x, y, z, intensity, time lag; offset from the pillar's mean (3); offset from the cell's centre (2).
POINT_FEATURES = 10


class PillarEncoder(nn.Module):
    """PointPillars' feature net (arXiv 1812.05784) as a 1x1 convolution and a maximum over a pillar's points."""

    def __init__(self, channels: int, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        self.pfn_layers = nn.Sequential(conv_norm_relu(POINT_FEATURES, channels, kernel=1))

    def forward(self, pillars: Tensor, pillar_count: Tensor, pillar_index: Tensor) -> Tensor:
        """[B, P, M, 5], [B, P], [B, P] -> [B, P, channels]; padding rows give arbitrary values (dump row)."""
        decorated = self._decorate(pillars, pillar_count, pillar_index)
        slots = torch.arange(self.spec.max_points, device=pillars.device, dtype=pillar_count.dtype)
        valid = (slots < pillar_count[..., None]).to(pillars.dtype)  # [B, P, M]
        x = (decorated * valid[..., None]).permute(0, 3, 1, 2)  # [B, 10, P, M]
        x = self.pfn_layers(x) * valid[:, None]
        return x.amax(dim=-1).permute(0, 2, 1)

    def _decorate(self, pillars: Tensor, pillar_count: Tensor, pillar_index: Tensor) -> Tensor:
        """Point features [B, P, M, 10]; coordinates stay FP32 here in every precision."""
        xyz = pillars[..., :3]
        count = pillar_count.to(pillars.dtype).clamp(min=1.0)
        mean = xyz.sum(dim=2) / count[..., None]  # padding is zero, so the sum is over real points
        columns = self.spec.pillar_shape_yx[1]
        cell = pillar_index.to(pillars.dtype)
        # Half a cell added before the floor keeps it right where division is done by a reciprocal.
        row = torch.floor((cell + 0.5) / columns)
        column = cell - row * columns
        size, (x0, y0) = self.spec.pillar_size_m, self.spec.range_m[:2]
        center = torch.stack([x0 + (column + 0.5) * size, y0 + (row + 0.5) * size], dim=-1)  # [B, P, 2]
        intensity = pillars[..., 3:4] / 255.0
        # Positions in units of 10 m, so that all features are of one order of magnitude.
        parts = [xyz / 10.0, intensity, pillars[..., 4:5], xyz - mean[:, :, None], xyz[..., :2] - center[:, :, None]]
        return torch.cat(parts, dim=-1)


class PillarScatter(nn.Module):
    """Pillars to a dense canvas (unique cells plus a dump row), then strided convolutions down to the BEV map."""

    def __init__(self, channels: int, out_channels: int, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        steps = int(math.log2(spec.bev_stride))
        layers: list[nn.Module] = []
        for step in range(steps):
            layers.append(conv_norm_relu(channels, out_channels if step == steps - 1 else channels, stride=2))
        if not steps:
            layers.append(conv_norm_relu(channels, out_channels))
        self.down = nn.Sequential(*layers)

    def forward(self, features: Tensor, pillar_index: Tensor) -> Tensor:
        """[B, P, C] at flat cells [B, P] -> [B, out_channels, Y, X]."""
        rows, columns = self.spec.pillar_shape_yx
        canvases = []
        for sample in range(features.shape[0]):
            canvas = features.new_zeros(rows * columns + 1, features.shape[2])
            canvas = torch.index_put(canvas, (pillar_index[sample].long(),), features[sample])
            canvases.append(canvas[: rows * columns])
        dense = torch.stack(canvases).permute(0, 2, 1).reshape(features.shape[0], -1, rows, columns)
        return self.down(dense)
