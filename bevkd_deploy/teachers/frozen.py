"""A teacher that cannot learn, drift or leak into the student's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.models.network import Boxes, DetectionNetwork

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(Protocol):
    """What a training step asks of a teacher, live or cached."""

    spec: GraphSpec | SensorSpec

    @property
    def model(self) -> DetectionNetwork:
        """The network."""

    def boxes(self, maps: dict[str, Tensor]) -> Boxes:
        """Boxes [B, Q, 9] (lidar frame, geometric centre), scores and labels [B, Q] of what it returned."""

    def to(self, device: torch.device) -> Teacher:
        """Work on this device from now on."""

    def __call__(self, inputs: dict[str, Tensor] | None, positions: Sequence[int] = ()) -> dict[str, Tensor]:
        """Head maps [B, C, Y, X], float32, of a batch."""


class FrozenTeacher:
    """A detector in evaluation mode without gradients, in a precision of its own.

    It is no `nn.Module`, so that it never enters a student's state dict, optimizer or data-parallel wrapper, and
    `train()` on the student cannot reach its batch norms, dropouts and drop paths.

    Attributes:
        spec: its input contract.
        model: the network.
        precision: of its autocast, whatever the student's is.
    """

    def __init__(self, model: DetectionNetwork, spec: GraphSpec | SensorSpec, precision: Precision = "fp32") -> None:
        self.spec = spec
        self.model = model.eval().requires_grad_(False)
        self.precision: Precision = precision

    def to(self, device: torch.device) -> FrozenTeacher:
        """Move the network to a device."""
        self.model.to(device)
        return self

    def tensors(self) -> Iterable[Tensor]:
        """Parameters and buffers; they stay bit-equal through any training."""
        return self.model.state_dict().values()

    # no_grad, not inference_mode: tensors of inference mode cannot take part in the student's backward pass.
    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor] | None, positions: Sequence[int] = ()) -> dict[str, Tensor]:
        """Graph inputs [B, ...] -> head maps, float32, without a loss and without ground truth.

        Args:
            inputs: of `spec`, batched.
            positions: of the frames; not looked at, a cached teacher is.
        """
        assert inputs is not None  # only a data set told to leave them out for a cached teacher does so
        # Whoever else holds the model may have called train() on it.
        self.model.eval()
        device = next(iter(inputs.values())).device.type
        dtype = _AUTOCAST.get(self.precision)
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            maps: dict[str, Tensor] = self.model(**inputs)
        return {name: value.float() for name, value in maps.items()}

    @torch.no_grad()
    def boxes(self, maps: dict[str, Tensor]) -> Boxes:
        """Boxes [B, Q, 9] (lidar frame, geometric centre), scores and labels [B, Q] of what it returned.

        Decoders may write into the maps they read; these are needed for the losses afterwards.
        """
        return self.model.decode({name: value.detach().clone() for name, value in maps.items()})
