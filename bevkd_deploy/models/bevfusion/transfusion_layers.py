"""Parts of the TransFusion head, with mmdet3d's parameter names and layouts ([B, C, Q] between the parts).

Source: mmdet3d's projects/BEVFusion at open-mmlab/mmdetection3d@fe25f7a (TransformerDecoderLayer), mmcv 2.1.0
(ConvModule, MultiheadAttention, FFN) and mmdet3d 1.4.0 (SeparateHead).
"""

from __future__ import annotations

from torch import Tensor, nn

from bevkd_deploy.models.bevfusion.blocks import conv_module

HEADS = 8
FEEDFORWARD_FACTOR = 2
PREDICTION_CHANNELS = 64

#: What a query is regressed to, and the channels of each.
BOX_CODES: dict[str, int] = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


class PositionEmbedding(nn.Module):
    """Positions in cells, lifted to the width of the features by two pointwise layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=False),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """[B, P, 2] -> [B, C, P]."""
        embedded: Tensor = self.position_embedding_head(positions.transpose(1, 2))
        return embedded


class PositionedAttention(nn.Module):
    """Multi-head attention plus its query, where positions enter the values too, unlike in DETR."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, HEADS, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """query [B, Q, C] and key [B, P, C] with their embedded positions, of the same shapes -> [B, Q, C]."""
        placed = key + key_pos
        # Without the weights: that is several times faster and never holds [B, heads, Q, P].
        attended, _ = self.attn(query + query_pos, placed, placed, need_weights=False)
        return query + attended


class FeedForward(nn.Module):
    """Two linear layers plus their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels * FEEDFORWARD_FACTOR
        first = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=False))
        self.layers = nn.Sequential(first, nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, Q, C] -> [B, Q, C]."""
        return x + self.layers(x)


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to every BEV cell; layer norm after each step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = PositionedAttention(channels)
        self.cross_attn = PositionedAttention(channels)
        self.ffn = FeedForward(channels)
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])
        self.self_posembed = PositionEmbedding(channels)
        self.cross_posembed = PositionEmbedding(channels)

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """query [B, C, Q], key [B, C, P], positions in cells [B, Q, 2] and [B, P, 2] -> [B, C, Q]."""
        query_pos = self.self_posembed(query_pos).transpose(1, 2)
        key_pos = self.cross_posembed(key_pos).transpose(1, 2)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        query = self.norms[0](self.self_attn(query, query, query_pos, query_pos))
        query = self.norms[1](self.cross_attn(query, key, query_pos, key_pos))
        return self.norms[2](self.ffn(query)).transpose(1, 2)


class PredictionHead(nn.Module):
    """Two pointwise layers for each of `BOX_CODES` and for the class logits (`heatmap`)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.outputs = {**BOX_CODES, "heatmap": classes}
        for name, size in self.outputs.items():
            hidden = conv_module(nn.Conv1d(channels, PREDICTION_CHANNELS, 1, bias=False), nn.BatchNorm1d)
            self.add_module(name, nn.Sequential(hidden, nn.Conv1d(PREDICTION_CHANNELS, size, 1)))

    def forward(self, query: Tensor) -> dict[str, Tensor]:
        """[B, C, Q] -> one map [B, size, Q] a name."""
        return {name: getattr(self, name)(query) for name in self.outputs}
