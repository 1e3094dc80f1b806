"""Weights of an mmdet3d checkpoint into its detector: every key accounted for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.models.weights_file import WeightsFile

_WRAPPER = "module."


def classes_of(weights: WeightsFile) -> tuple[str, ...] | None:
    """Classes that a checkpoint was trained with, in the order of its labels; None where it does not say.

    mmengine writes them as dataset_meta, mmcv's older runner as CLASSES.
    """
    dataset = weights.meta.get("dataset_meta") or {}
    names = dataset.get("classes") or dataset.get("CLASSES") or weights.meta.get("CLASSES")
    return tuple(names) if names else None


def load_into(model: torch.nn.Module, weights: WeightsFile) -> None:
    """Load weights; every key must fit, where mmengine's own loading only warns.

    Raises:
        ArtifactError: names all missing, unexpected and mis-shaped keys.
    """
    try:
        model.load_state_dict(_state(weights, model), strict=True)
    except RuntimeError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise ArtifactError(
            "\n  ".join([f"checkpoint {weights.path} does not fit the model of its mmdet3d config:", *problems])
            + "\nUse the config that it was trained with (teacher.config)"
        ) from error


def _state(weights: WeightsFile, model: torch.nn.Module) -> dict[str, Tensor]:
    """Without a wrapper's name, and with the versions of modules: they tell mmdet3d the layout of sparse kernels.

    A file that does not carry them but has every shape of the model has the model's layout.
    """
    wrapped = all(key.startswith(_WRAPPER) for key in weights.state)

    def unwrapped(key: str) -> str:
        return f"{key}.".removeprefix(_WRAPPER).removesuffix(".") if wrapped else key

    state: Any = OrderedDict((unwrapped(key), value) for key, value in weights.state.items())
    own: Any = model.state_dict()
    same_shapes = all(key in state and state[key].shape == value.shape for key, value in own.items())
    versions = {unwrapped(key): version for key, version in weights.versions.items()}
    state._metadata = own._metadata if same_shapes and not versions else versions
    found: dict[str, Tensor] = state
    return found
