"""BEVFusion's TransFusion head: a heatmap proposes queries, one transformer decoder layer refines each to a box.

Convention: maps are [B, C, X, Y] (axis order "xy"): the flat index of a cell is x * Y + y, its centre lies at
(x + 0.5, y + 0.5) cells, and a position in cells times the cell's side, plus the range's lower edge, is in metres.
Parameters carry mmdet3d's names. The head is for inference: it has neither dropout nor losses.

Source: TransFusion (arXiv 2203.11496), TransFusionHead and TransFusionBBoxCoder of mmdet3d's projects/BEVFusion at
open-mmlab/mmdetection3d@fe25f7a; the other box coding is mit-han-lab/bevfusion@326653d's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.blocks import conv_module
from bevkd_deploy.models.bevfusion.transfusion_layers import DecoderLayer, PredictionHead

#: Classes so small that neighbouring cells are two objects: each cell of theirs is a candidate, not peaks alone.
SMALL_CLASSES: tuple[str, ...] = ("pedestrian", "traffic_cone")

PEAK_KERNEL = 3

#: How a head's `dim`, `rot` and `height` stand for a box. "mmdet3d" (1.x): (l, w, h), yaw counter-clockwise from +x,
#: height of the centre. "mit" (its fork of mmdet3d 0.x): (w, l, h), -yaw - pi/2, and height of the box's top, because
#: its ground truth names the centre a bottom (tools/visualize.py takes half a height off again).
BoxCoding = Literal["mmdet3d", "mit"]


class TransFusionHead(nn.Module):
    """Class heatmap, its best cells as queries, and their boxes.

    Attributes:
        geometry: range, cells, classes and the number of queries.
        box_coding: of the weights it is used with.
    """

    bev_pos: Tensor
    small_classes: Tensor

    def __init__(
        self,
        in_channels: int,
        geometry: BevFusionGeometry,
        box_coding: BoxCoding = "mmdet3d",
        channels: int = 128,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.box_coding: BoxCoding = box_coding
        classes = len(geometry.classes)
        self.shared_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            conv_module(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d),
            nn.Conv2d(channels, classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(classes, channels, 1)
        self.decoder = nn.ModuleList([DecoderLayer(channels)])
        self.prediction_heads = nn.ModuleList([PredictionHead(channels, classes)])
        cells_x, cells_y = (cells // geometry.bev_stride for cells in geometry.grid_size[:2])
        self.register_buffer("bev_pos", _cell_centers(cells_x, cells_y), persistent=False)
        # By name: mmdet3d has the indices 8 and 9 in its code, which are these two in its configuration.
        small = torch.tensor([name in SMALL_CLASSES for name in geometry.classes])
        self.register_buffer("small_classes", small.view(1, classes, 1, 1), persistent=False)

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[dict[str, Tensor]]]:
        """The neck's maps -> the head's, nested as mmdet3d nests them: one level of features, one item.

        Args:
            feats: one map [B, in_channels, X, Y].

        Returns:
            ([maps],) with, float32, Q = geometry.proposals queries in descending order of their heatmap score:
                dense_heatmap [B, K, X, Y], logits;
                heatmap [B, K, Q], class logits of each query;
                center [B, 2, Q], (x, y) in cells from the range's lower edge;
                height [B, 1, Q], dim [B, 3, Q] (logarithms), rot [B, 2, Q] (sine, cosine), as `box_coding` says;
                vel [B, 2, Q], m/s in the lidar frame;
                query_heatmap_score [B, K, Q], the heatmap at the query's cell, 0 for classes without a peak there;
                query_labels int64 [B, Q], the class that proposed the query.
        """
        (bev,) = feats
        # In float32 under any autocast: proposals are ranked by differences that half precision rounds away.
        with torch.autocast(bev.device.type, enabled=False):
            shared = self.shared_conv(bev.float())
            dense_heatmap = self.heatmap_head(shared)
            scores = self._peaks(dense_heatmap.sigmoid()).flatten(2)  # [B, K, XY]
            labels, cells = self._proposals(scores)
            maps = self._queries(shared.flatten(2), labels, cells)
            maps["query_heatmap_score"] = _take(scores, cells)
            maps["dense_heatmap"] = dense_heatmap
            maps["query_labels"] = labels
        return ([maps],)

    def decode(self, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The head's maps -> boxes; the maps stay as they are.

        Returns:
            boxes float32 [B, Q, 9] (lidar frame, geometric centre), scores [B, Q] descending, labels int64 [B, Q].
            A score of 0 is no detection: its box lies outside of geometry.post_center_range_m.
        """
        labels = maps["query_labels"]
        scores = (maps["heatmap"].sigmoid() * maps["query_heatmap_score"]).gather(1, labels[:, None]).squeeze(1)
        boxes = self._boxes(maps)
        scores = torch.where(self._inside(boxes, maps), scores, torch.zeros_like(scores))
        scores, order = torch.sort(scores, dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand_as(boxes))
        return boxes, scores, labels.gather(1, order)

    def _peaks(self, heat: Tensor) -> Tensor:
        """Probabilities [B, K, X, Y] -> the same with 0 where a class has no local maximum.

        The outermost cells are never one, which is mmdet3d's; of `SMALL_CLASSES` every cell is.
        """
        margin = PEAK_KERNEL // 2
        highest = functional.pad(functional.max_pool2d(heat, PEAK_KERNEL, 1), (margin,) * 4)
        return torch.where((heat == highest) | self.small_classes, heat, torch.zeros_like(heat))

    def _proposals(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, K, XY], none negative -> classes [B, Q] and cells [B, Q] of the best, descending.

        Among equal scores the lower class, then the lower cell comes first on every device, which `topk` alone does
        not promise: the bits of non-negative floats sort as integers do, so (score, index) fits one int64 key.
        """
        cells = scores.shape[2]
        flat = scores.flatten(1)
        count = flat.shape[1]
        backwards = torch.arange(count - 1, -1, -1, device=flat.device)
        keys = flat.contiguous().view(torch.int32).to(torch.int64) * count + backwards
        best = keys.topk(self.geometry.proposals, dim=1).indices
        return best // cells, best % cells

    def _queries(self, features: Tensor, labels: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """Features [B, C, XY] and proposals [B, Q] -> class logits and box codes of each query."""
        one_hot = functional.one_hot(labels, len(self.geometry.classes)).transpose(1, 2).to(features.dtype)
        query = _take(features, cells) + self.class_encoding(one_hot)
        query_pos = self.bev_pos[cells]  # [B, Q, 2]
        key_pos = self.bev_pos.expand(len(features), -1, -1)  # [B, XY, 2]
        coded: dict[str, Tensor] = self.prediction_heads[0](self.decoder[0](query, features, query_pos, key_pos))
        return {**coded, "center": coded["center"] + query_pos.transpose(1, 2)}

    def _boxes(self, maps: dict[str, Tensor]) -> Tensor:
        """Box codes [B, C, Q] each -> [B, Q, 9]."""
        cell_m, low_m = self.geometry.bev_cell_m, self.geometry.range_m
        x = maps["center"][:, 0] * cell_m + low_m[0]
        y = maps["center"][:, 1] * cell_m + low_m[1]
        height, vel = maps["height"][:, 0], maps["vel"]
        first, second, up = maps["dim"].exp().unbind(1)
        sine, cosine = maps["rot"].unbind(1)
        if self.box_coding == "mit":
            z, length, width, yaw = height - up / 2, second, first, torch.atan2(-cosine, -sine)
        else:
            z, length, width, yaw = height, first, second, torch.atan2(sine, cosine)
        return torch.stack([x, y, z, length, width, up, yaw, vel[:, 0], vel[:, 1]], dim=-1)

    def _inside(self, boxes: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """Whether boxes [B, Q, 9] lie in the post-centre range; bool [B, Q].

        Both originals look at the height less half of the box's, whatever point of the box that is in their coding.
        """
        z = maps["height"][:, 0] - boxes[..., 5] / 2
        position = torch.cat([boxes[..., :2], z[..., None]], dim=-1)
        limits = position.new_tensor(self.geometry.post_center_range_m)
        return ((position >= limits[:3]) & (position <= limits[3:])).all(-1)


def _take(maps: Tensor, cells: Tensor) -> Tensor:
    """Columns `cells` [B, Q] of maps [B, C, XY] -> [B, C, Q]."""
    return maps.gather(2, cells[:, None].expand(-1, maps.shape[1], -1))


def _cell_centers(cells_x: int, cells_y: int) -> Tensor:
    """(x, y) of every cell's centre in cells, in flat order x * Y + y; [XY, 2]."""
    x, y = torch.meshgrid(torch.arange(cells_x) + 0.5, torch.arange(cells_y) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
