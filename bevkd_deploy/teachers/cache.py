"""A teacher whose head maps are looked up where they are known, instead of computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd_deploy.data.dataset import FrameDataset, batched
from bevkd_deploy.models.network import Boxes, DetectionNetwork
from bevkd_deploy.teachers.frozen import FrozenTeacher
from bevkd_deploy.teachers.map_store import MapStore


class CachedTeacher:
    """Head maps from a store; the network runs only for frames that the store does not have yet.

    What a frame is, augmentation included, is decided by its position (`FrameDataset.content_of`), so its maps can be
    kept by it. They are computed one frame at a time, since the other frames of a batch change the last bits of a
    result, and they are given out as the store keeps them, also the first time. A run therefore ends with the same
    bits whether it finds none, some or all of its frames in the store.

    Only the maps that the store keeps are given out, and hooks inside the network never fire: losses on features need
    the `FrozenTeacher` itself.
    """

    def __init__(self, frozen: FrozenTeacher, store: MapStore, frames: FrameDataset, name: str = "teacher") -> None:
        """Serve a frozen teacher from a store.

        Args:
            frozen: the network.
            store: its key must cover the weights, the precision and everything that decides a frame.
            frames: the training frames; makes the inputs of a frame that came without them.
            name: of the teacher in `frames.specs`.
        """
        self.spec = frozen.spec
        self.frozen, self.store, self.frames, self.name = frozen, store, frames, name
        self._device = torch.device("cpu")

    @property
    def model(self) -> DetectionNetwork:
        """The network."""
        return self.frozen.model

    def to(self, device: torch.device) -> CachedTeacher:
        """Compute, and give out maps, on this device."""
        self.frozen.to(device)
        self._device = device
        return self

    def __call__(self, inputs: dict[str, Tensor] | None, positions: Sequence[int] = ()) -> dict[str, Tensor]:
        """Head maps [B, C, Y, X], float32.

        Args:
            inputs: of `spec`, batched; None where a frame of the batch came without them.
            positions: of the frames, as the sampler counted them.
        """
        assert positions  # a batch of `collate` has them
        frames = [self._maps(inputs, row, position) for row, position in enumerate(positions)]
        # Float first: autocast refuses to stack halves on a CPU.
        return {name: torch.stack([maps[name].float() for maps in frames]).to(self._device) for name in self.store.maps}

    def boxes(self, maps: dict[str, Tensor]) -> Boxes:
        """Boxes [B, Q, 9], scores and labels [B, Q] of what it gave out."""
        return self.frozen.boxes(maps)

    def _maps(self, inputs: dict[str, Tensor] | None, row: int, position: int) -> dict[str, Tensor]:
        entry = self.frames.content_of(position)
        known = self.store.get(entry)
        if known is not None:
            return known
        if inputs is None:
            made = self.frames.inputs_of(position, self.name)
            one = {key: value.to(self._device) for key, value in batched([made]).items()}
        else:
            one = {key: value[row : row + 1] for key, value in inputs.items()}
        return self.store.put(entry, {name: value[0] for name, value in self.frozen(one).items()})
