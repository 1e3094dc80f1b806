"""Camera branch after the backbone: feature pyramid and gather view transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.models.blocks import conv_norm_relu


class ImageNeck(nn.Module):
    """Top-down pyramid that ends in one map at the finest stride (FPN, arXiv 1612.03144)."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList([nn.Conv2d(c, channels, 1) for c in in_channels])
        self.fpn_conv = conv_norm_relu(channels, channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of increasing stride -> [N, channels, h, w] at the first one's stride."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        top = laterals[-1]
        for finer in reversed(laterals[:-1]):
            # A fixed factor of 2 exports as Resize with constant scales.
            top = finer + nn.functional.interpolate(top, scale_factor=2.0, mode="nearest")
        return self.fpn_conv(top)


class GatherViewTransform(nn.Module):
    """Camera features to BEV by table look-up: sum over heights of feature[pixel] * depth[pixel, bin].

    Source of the idea: index-gather view transforms (arXiv 2301.12511, FastBEV++) with LSS's depth distribution
    (arXiv 2008.05711).
    """

    def __init__(self, in_channels: int, out_channels: int, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        self.out_channels = out_channels
        self.depthnet = nn.Sequential(
            conv_norm_relu(in_channels, in_channels), nn.Conv2d(in_channels, spec.depth_bins + out_channels, 1)
        )
        self.downsample = conv_norm_relu(out_channels, out_channels)

    def forward(self, features: Tensor, lut_pixel: Tensor, lut_depth: Tensor) -> Tensor:
        """Lift and gather.

        Args:
            features: [B * N, C, h, w].
            lut_pixel: int [B, Z, Y * X], rows of the flattened features, the last row being zeros.
            lut_depth: int [B, Z, Y * X], entries of the flattened depth distribution, the last being zero.

        Returns:
            [B, out_channels, Y, X].
        """
        batch, heights, cells = lut_pixel.shape
        lifted = self.depthnet(features)
        depth = torch.softmax(lifted[:, : self.spec.depth_bins], dim=1)  # [B * N, D, h, w]
        context = lifted[:, self.spec.depth_bins :]
        # Rows of one sample are contiguous, in the order the tables count: camera, row, column (, bin).
        context = context.permute(0, 2, 3, 1).reshape(batch, -1, self.out_channels)  # [B, N*h*w, C]
        depth = depth.permute(0, 2, 3, 1).reshape(batch, -1)  # [B, N*h*w*D]
        rows = []
        for sample in range(batch):
            table = nn.functional.pad(context[sample], (0, 0, 0, 1))  # zero dump row
            weights = nn.functional.pad(depth[sample], (0, 1))
            # index_select takes the int32 tables as they are and exports as a plain Gather.
            picked = torch.index_select(table, 0, lut_pixel[sample].reshape(-1))  # [Z*YX, C]
            weight = torch.index_select(weights, 0, lut_depth[sample].reshape(-1))  # [Z*YX]
            rows.append((picked * weight[:, None]).reshape(heights, cells, -1).sum(0))
        bev = torch.stack(rows).permute(0, 2, 1)  # [B, C, YX]
        return self.downsample(bev.reshape(batch, self.out_channels, *self.spec.bev_shape_yx))
