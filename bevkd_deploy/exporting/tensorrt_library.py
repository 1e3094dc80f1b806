"""TensorRT and TensorRT-RTX as one library whose abilities are asked for by name, never read off a version number."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bevkd_deploy.contracts.errors import CannotRunHere, UsageError
from bevkd_deploy.contracts.target import EngineLibrary

Capability = Literal["strong_typing", "compute_capabilities", "progress", "tf32"]

_INSTALL = {
    "tensorrt_rtx": 'pip install "bevkd-deploy[rtx]"',
    "tensorrt": 'pip install "bevkd-deploy[tensorrt]" (on a Jetson it is part of JetPack)',
}


@dataclass(frozen=True)
class TensorRTModule:
    """An imported library.

    Attributes:
        module: the Python module.
        flavour: its name, which is also what a sidecar records.
        version: as the library states it.
        capabilities: what it can do.
    """

    module: Any
    flavour: EngineLibrary
    version: str
    capabilities: frozenset[Capability]

    def compute_capabilities(self) -> dict[str, Any]:
        """Compute capabilities that plans can be compiled for without such a GPU: {"8.9": enum member, ...}."""
        if "compute_capabilities" not in self.capabilities:
            return {}
        members = self.module.ComputeCapability.__members__
        digits = {name.removeprefix("SM"): value for name, value in members.items() if name.startswith("SM")}
        return {f"{number[:-1]}.{number[-1]}": value for number, value in digits.items()}


def load_tensorrt(prefer: Sequence[EngineLibrary] = ("tensorrt", "tensorrt_rtx")) -> TensorRTModule:
    """The first installed library of a list.

    Args:
        prefer: names, best first.

    Raises:
        CannotRunHere: none is installed; says how to install each.
    """
    if not prefer:
        raise UsageError("load_tensorrt needs at least one library name")
    reasons = []
    for flavour in prefer:
        try:
            module = importlib.import_module(flavour)
        except (ImportError, OSError) as error:  # OSError: a shared library of the wheel cannot be loaded
            reasons.append(f"{flavour} is not installed ({error}): {_INSTALL[flavour]}")
            continue
        return TensorRTModule(module, flavour, str(module.__version__), _capabilities(module))
    raise CannotRunHere("; ".join(reasons))


def _capabilities(module: Any) -> frozenset[Capability]:
    found: set[Capability] = set()
    if hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        found.add("strong_typing")
    if hasattr(module, "ComputeCapability") and hasattr(module.IBuilderConfig, "set_compute_capability"):
        found.add("compute_capabilities")
    if hasattr(module, "IProgressMonitor") and hasattr(module.IBuilderConfig, "progress_monitor"):
        found.add("progress")
    if hasattr(module.BuilderFlag, "TF32"):
        found.add("tf32")
    return frozenset(found)
