"""The file that a resumed run goes on from, and the random state in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import remove_leftovers, write_atomic

#: Between the seeds of two processes; far more than the seeds that anyone tries in a row.
_SEED_STRIDE = 1_000_003


@dataclass
class TrainingState:
    """Everything a resumed run needs, in one file, so that no kill can leave half of it."""

    path: Path
    key: str

    def save(self, content: dict[str, Any]) -> None:
        """Write atomically."""
        write_atomic(self.path, lambda temporary: torch.save({"key": self.key, **content}, temporary))

    def load(self) -> dict[str, Any]:
        """Read what `save` wrote.

        Raises:
            ArtifactError: there is nothing to resume, or it belongs to another recipe.
        """
        if not self.path.is_file():
            raise ArtifactError(f"nothing to resume: {self.path} does not exist; start without --resume")
        content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        if content["key"] != self.key:
            raise ArtifactError(
                f"{self.path} belongs to another recipe, data or teacher (key {content['key'][:12]}, this run has "
                f"{self.key[:12]}); start a new run, or restore the recipe it was made with"
            )
        return content

    def clean(self) -> None:
        """Remove what a run that was killed while it wrote has left beside the file."""
        remove_leftovers(self.path)


def seed_draws(seed: int, rank: int) -> None:
    """Start the generators that a step draws from (PyTorch's, of every device), differently in each process."""
    torch.manual_seed(seed + _SEED_STRIDE * rank)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of the generators that a step draws from; data and augmentation depend on seed and position alone."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go on drawing where `random_state` was taken."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
