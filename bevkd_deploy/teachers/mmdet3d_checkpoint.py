"""Checkpoints that mmengine wrote: read without running code from them, every key accounted for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what the training wrote beside them.

    Attributes:
        state: tensors by key, with the versions of modules in `_metadata` where they were written.
        classes: that it was trained with, in the order of its labels; None where the file does not say.
        sha256: of the file.
    """

    state: dict[str, Tensor]
    classes: tuple[str, ...] | None
    sha256: str


class _LogRecord:
    """Stands for mmengine's log history, which is not needed and would need mmengine."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def read_mmengine_checkpoint(path: Path, expected_sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint of mmengine's Runner (or a plain state dict) with `torch.load(weights_only=True)`.

    Raises:
        ArtifactError: the file is missing, has another hash, is damaged, or holds objects beyond tensors, numbers,
            text and mmengine's logs.
    """
    if not path.is_file():
        raise ArtifactError(f"checkpoint not found: {path}")
    digest = sha256_file(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise ArtifactError(f"checkpoint {path} has sha256 {digest}, the recipe expects {expected_sha256}")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise ArtifactError(
            f"checkpoint {path} is damaged, or holds objects that are not read for safety: {reason}. If you trust it, "
            "write its weights alone: torch.save({'state_dict': ..., 'meta': {}}, FILE)"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ArtifactError(f"checkpoint {path} is damaged or no PyTorch file: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArtifactError(f"checkpoint {path} holds no state dict; expected one of mmengine's Runner")
    return Checkpoint(state, _classes(content.get("meta")), digest)


def load_into(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Load weights; every key must fit. (mmengine's own loading only warns.)

    Raises:
        ArtifactError: names all missing, unexpected and mis-shaped keys.
    """
    state = checkpoint.state
    if all(key.startswith("module.") for key in state):  # saved from inside a data-parallel wrapper
        metadata = getattr(state, "_metadata", None)
        state = {key.removeprefix("module."): value for key, value in state.items()}
        if metadata is not None:
            stripped = {key.removeprefix("module").removeprefix("."): value for key, value in metadata.items()}
            state = _with_metadata(state, stripped)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise ArtifactError(
            "\n  ".join([f"checkpoint {path} does not fit the config's model:", *problems])
            + "\nUse the config that it was trained with (teacher.config)"
        ) from error


def _with_metadata(state: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
    from collections import OrderedDict

    ordered = OrderedDict(state)
    ordered._metadata = metadata  # type: ignore[attr-defined]
    return ordered


def _classes(meta: Any) -> tuple[str, ...] | None:
    """Of mmengine (dataset_meta) or of mmcv's older runner (CLASSES)."""
    if not isinstance(meta, dict):
        return None
    dataset = meta.get("dataset_meta") or {}
    names = dataset.get("classes") or dataset.get("CLASSES") or meta.get("CLASSES")
    return tuple(names) if names else None


def _harmless() -> list[tuple[Callable[..., Any] | type, str] | type]:
    """Beyond what weights_only allows: NumPy's numbers and arrays, under the names of both its versions, and logs."""
    multiarray = np.asarray([]).__reduce__()[0].__module__  # numpy.core or numpy._core
    reconstruct = np.asarray([]).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    assert multiarray.endswith("multiarray")
    allowed: list[Any] = [np.ndarray, np.dtype]
    allowed += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    for package in ("numpy.core", "numpy._core"):
        allowed += [(reconstruct, f"{package}.multiarray._reconstruct"), (scalar, f"{package}.multiarray.scalar")]
    return [*allowed, (_LogRecord, "mmengine.logging.history_buffer.HistoryBuffer")]
