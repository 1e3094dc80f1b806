"""The precision of the forward pass, and the loss scale that fp16 needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from bevkd_deploy.contracts.errors import CannotRunHere, NonFiniteError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: A loss scale below this means that gradients overflow without any scaling: waiting does not mend it.
_SMALLEST_SCALE = 1.0


class Precision:
    """Autocast and loss scale of one training.

    Weights, optimizer and losses are fp32 in every precision: autocast rounds the inputs of convolutions and matrix
    products, and what must not be rounded (softmax, contrast, sums over cells) converts to fp32 itself.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        """Prepare a precision.

        Raises:
            CannotRunHere: the device cannot train in it.
        """
        self.name = name
        self.device = device
        self.dtype = _DTYPES.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if self.dtype is not None:
            _try(self)

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Make the optimizer's step from unscaled gradients; False where fp16's gradients overflowed, so none was made.

        Raises:
            NonFiniteError: they overflow again and again, down to no scaling at all.
        """
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < _SMALLEST_SCALE:
            raise NonFiniteError(
                f"gradients overflow fp16 even at a loss scale of {after:g}; use train.precision bf16 or fp32, or "
                "lower the learning rate"
            )
        return after >= before


def _try(precision: Precision) -> None:
    """One convolution there and back: what a device can do is best told by trying."""
    device = precision.device
    kernel = torch.ones(4, 4, 3, 3, device=device, requires_grad=True)  # not drawn: draws belong to the training
    try:
        with precision.autocast():
            output = nn.functional.conv2d(torch.ones(1, 4, 8, 8, device=device), kernel)
        torch.autograd.backward(output.float().sum())
    except (RuntimeError, NotImplementedError) as error:
        raise CannotRunHere(
            f"train.precision {precision.name} cannot run on this device ({device.type}): {error}. "
            "Use train.precision bf16 or fp32"
        ) from error
