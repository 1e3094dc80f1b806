"""Detector weights as safetensors, with the model they belong to written inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file, write_atomic
from bevkd_deploy.contracts.recipe_model import ModelConfig

_KEY = "bevkd"

#: Settings that may change after training: capacities, the number of boxes, what only training reads.
_FREE_SETTINGS = {
    "camera.pretrained", "head.min_radius_cells", "head.top_k", "lidar.max_pillars", "lidar.max_points",
}  # fmt: skip


def save_detector(path: Path, detector: nn.Module, config: ModelConfig, notes: dict[str, Any] | None = None) -> Path:
    """Write the weights of a detector atomically; `notes` (JSON) travels in the file's metadata."""
    header = json.dumps({"model": config.model_dump(mode="json"), "notes": notes or {}}, sort_keys=True)
    tensors = {key: value.detach().contiguous().cpu() for key, value in detector.state_dict().items()}
    return write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata={_KEY: header}))


def load_detector(path: Path, detector: nn.Module, config: ModelConfig, expected_sha256: str | None = None) -> str:
    """Load weights into a detector built from `config`; every key must match.

    Returns:
        The file's sha256.

    Raises:
        ArtifactError: the file is missing, damaged, has another hash, or is of another model; the message names the
            settings that differ and every missing, unexpected and mis-shaped key.
    """
    if not path.is_file():
        raise ArtifactError(f"checkpoint not found: {path}")
    digest = sha256_file(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise ArtifactError(f"checkpoint {path} has sha256 {digest}, the recipe expects {expected_sha256}")
    tensors, made_for = read_weights(path)
    require_fit(str(path), tensors, made_for, detector, config)
    detector.load_state_dict(tensors, strict=True)
    return digest


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a file, and the model they were trained as ({} where the file does not say it).

    Raises:
        ArtifactError: the file is damaged or no safetensors file.
    """
    tensors, header = _read(path)
    return tensors, json.loads(header)["model"] if header else {}


def require_fit(
    source: str, tensors: dict[str, Tensor], made_for: dict[str, Any], detector: nn.Module, config: ModelConfig
) -> None:
    """Refuse weights that are not exactly those of a detector.

    Args:
        source: where they come from, for the message.
        tensors: by name.
        made_for: settings of the model that they were trained as; {} where they are not known.
        detector: the network.
        config: its settings.

    Raises:
        ArtifactError: names the settings that differ and every missing, unexpected and mis-shaped key.
    """
    differences = _differences(made_for, config.model_dump(mode="json"))
    problems = key_problems(tensors, detector.state_dict())
    # Weights of another range or depth have the same shapes and detect nothing: settings count as much as keys.
    if problems or differences:
        raise ArtifactError(
            "\n  ".join([f"checkpoint {source} does not fit this model:", *differences, *problems])
            + "\nUse the recipe it was trained with, or train this model again"
        )


def read_notes(path: Path) -> dict[str, Any]:
    """The notes that `save_detector` wrote into a file.

    Raises:
        ArtifactError: the file is damaged or was not written by `save_detector`.
    """
    _, header = _read(path)
    if header is None:
        raise ArtifactError(f"checkpoint {path} carries no notes of bevkd")
    notes: dict[str, Any] = json.loads(header)["notes"]
    return notes


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            return {key: handle.get_tensor(key) for key in handle.keys()}, metadata.get(_KEY)  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(f"checkpoint {path} is damaged or no safetensors file: {error}") from error


def key_problems(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """One line for each key that a state dict lacks, has too many, or has in another shape."""
    problems = [f"missing: {key} {list(wanted[key].shape)}" for key in wanted if key not in found]
    problems += [f"unexpected: {key} {list(found[key].shape)}" for key in found if key not in wanted]
    problems += [
        f"shape: {key} is {list(found[key].shape)} in the file, {list(wanted[key].shape)} in the model"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    return problems


def _differences(made_for: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between the checkpoint's model and the one asked for, by dotted key."""
    lines = []
    for key in sorted(set(made_for) & set(asked)):
        old, new = made_for[key], asked[key]
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new and f"{prefix}{key}" not in _FREE_SETTINGS:
            lines.append(f"setting: {prefix}{key} was {old} in training, is {new} here")
    return lines
