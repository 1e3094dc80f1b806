"""A teacher that cannot learn, drift or leak into the student's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec


class FrozenTeacher:
    """A detector in evaluation mode without gradients.

    It is no `nn.Module`, so that it never enters a student's state dict, optimizer or data-parallel wrapper, and
    `train()` on the student cannot reach its batch norms.
    """

    def __init__(self, model: nn.Module, spec: GraphSpec) -> None:
        self.spec = spec
        self.model = model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> FrozenTeacher:
        """Move the network to a device."""
        self.model.to(device)
        return self

    def tensors(self) -> Iterable[Tensor]:
        """Parameters and buffers; they stay bit-equal through any training."""
        return self.model.state_dict().values()

    # no_grad, not inference_mode: tensors of inference mode cannot take part in the student's backward pass.
    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Graph inputs [B, ...] -> head maps, without a loss and without ground truth."""
        self.model.eval()
        maps: dict[str, Tensor] = self.model(**inputs)
        return maps
