"""CenterPoint-style head and its decoding (arXiv 2006.11275): one heatmap per class, one box per peak."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.models.blocks import conv_norm_relu

#: Regressed maps and their channels: sub-cell offset, centre height, log(l, w, h), (sin, cos) of yaw, velocity.
BOX_MAPS: dict[str, int] = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


class CenterHead(nn.Module):
    """Shared convolution, then a heatmap branch and five small regression branches."""

    def __init__(self, in_channels: int, channels: int, peak_kernel: int, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        self.peak_kernel = peak_kernel
        self.shared_conv = conv_norm_relu(in_channels, channels)
        self.heatmap = nn.Sequential(conv_norm_relu(channels, channels), nn.Conv2d(channels, len(spec.classes), 1))
        self.box_stem = conv_norm_relu(channels, channels)
        for name, size in BOX_MAPS.items():
            self.add_module(name, nn.Conv2d(channels, size, 1))
        self._init_heatmap_bias()

    def _init_heatmap_bias(self) -> None:
        final = self.heatmap[-1]
        assert isinstance(final, nn.Conv2d) and final.bias is not None
        nn.init.constant_(final.bias, -2.19)  # sigmoid = 0.1, so that empty cells do not swamp the first steps

    def forward(self, bev: Tensor) -> dict[str, Tensor]:
        """[B, C, Y, X] -> logits "heatmap" [B, K, Y, X] and the maps of BOX_MAPS."""
        shared = self.shared_conv(bev)
        maps = {"heatmap": self.heatmap(shared)}
        stem = self.box_stem(shared)
        for name in BOX_MAPS:
            maps[name] = getattr(self, name)(stem)
        return maps

    def decode(self, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Peaks to boxes, in FP32, with operators every TensorRT has.

        Returns:
            boxes [B, K, 9] (lidar frame, geometric centre), scores [B, K] descending, labels [B, K] int32.
        """
        rows, columns = self.spec.bev_shape_yx
        cells = rows * columns
        heat = torch.sigmoid(maps["heatmap"].float())
        pad = self.peak_kernel // 2
        # Peaks are found on logits: sigmoid saturates, and two saturated neighbours would both look like peaks.
        logits = maps["heatmap"].float()
        peak = (torch.nn.functional.max_pool2d(logits, self.peak_kernel, 1, pad) == logits).float()
        scores, flat = torch.topk((heat * peak).flatten(1), self.spec.top_k, dim=1)  # over K * Y * X
        # The half keeps the quotient right where a GPU divides by a reciprocal; exact below 2^23 entries.
        labels = torch.floor((flat.float() + 0.5) / cells).to(flat.dtype)
        cell = flat - labels * cells
        picked = torch.cat([maps[name] for name in BOX_MAPS], dim=1).float().flatten(2)  # [B, 10, YX]
        values = torch.gather(picked, 2, cell[:, None].expand(-1, picked.shape[1], -1)).transpose(1, 2)
        boxes = self._boxes(values, cell.float(), columns)
        return boxes, scores, labels.to(torch.int32)

    def _boxes(self, values: Tensor, cell: Tensor, columns: int) -> Tensor:
        """values [B, K, 10] in the order of BOX_MAPS at flat cells [B, K] -> [B, K, 9]."""
        row = torch.floor((cell + 0.5) / columns)
        column = cell - row * columns
        step_m = self.spec.pillar_size_m * self.spec.bev_stride
        x = (column + values[..., 0]) * step_m + self.spec.range_m[0]
        y = (row + values[..., 1]) * step_m + self.spec.range_m[1]
        center = torch.stack([x, y, values[..., 2]], dim=-1)
        size = torch.exp(values[..., 3:6].clamp(-4.0, 4.0))
        yaw = torch.atan2(values[..., 6], values[..., 7])[..., None]
        return torch.cat([center, size, yaw, values[..., 8:10]], dim=-1)
