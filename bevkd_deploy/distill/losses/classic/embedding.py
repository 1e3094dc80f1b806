"""The trained linear embedding that some classic losses put in front of both networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize


class LinearEmbedding(nn.Module):
    """A linear layer on flattened features, with outputs of unit length if wanted."""

    def __init__(self, inputs: int, outputs: int, *, unit_length: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.unit_length = unit_length

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, ...] with `inputs` entries a sample -> [B, outputs]."""
        embedded: Tensor = self.linear(features.flatten(1))
        return normalize(embedded, dim=1) if self.unit_length else embedded
