"""A moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the parameters of a network; buffers are copied.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the random weights of the beginning
    are soon forgotten.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(self.network.named_parameters())
        for name, value in self.network.state_dict().items():
            if name in parameters:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network has the average's weights; afterwards its own, bit for bit."""
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.values)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """For `load_state_dict`."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.updates = content["updates"]
        for name, value in self.values.items():
            loaded: Tensor = content["values"][name]
            value.copy_(loaded)
