"""Devices that a student can be built for: one YAML file each in export/targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.recipe_lines import dotted, parse_yaml
from bevkd_deploy.contracts.resources import resource_dir
from bevkd_deploy.contracts.suggest import did_you_mean

Rate = Annotated[float, Field(gt=0)]

#: Certainty of a device's figures: published by the vendor and confirmed by SMs x clock; derived from SMs x clock;
#: or from one secondary source.
Certainty = Literal["published", "derived", "secondary"]

#: What a plan is built with. TensorRT-RTX builds without a GPU, but for consumer and workstation GPUs alone.
EngineLibrary = Literal["tensorrt_rtx", "tensorrt"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PeakRates(_Part):
    """Dense peak rates in TFLOPS (int8: TOPS), FP32 accumulation, no sparsity.

    An absent rate is not supported, or not published.
    """

    fp32: Rate
    fp16: Rate
    int8: Rate | None = None
    fp8: Rate | None = None
    certainty: Certainty


class PowerMode(_Part):
    """One power mode of a Jetson module; it may switch off SMs as well as lower clocks."""

    name: str
    watts: Annotated[int, Field(gt=0)] | None = None
    sm_count: Annotated[int, Field(gt=0)] | None = None
    gpu_mhz: Annotated[int, Field(gt=0)] | None = None


class EngineSupport(_Part):
    """Libraries that build for a device, best first, and the versions known for it."""

    libraries: tuple[EngineLibrary, ...] = Field(min_length=1)
    versions: dict[EngineLibrary, str]

    @model_validator(mode="after")
    def _a_version_each(self) -> EngineSupport:
        if set(self.versions) != set(self.libraries):
            raise ValueError(f"versions must name each of {list(self.libraries)}, got {sorted(self.versions)}")
        return self


class Jetpack(_Part):
    """A JetPack release and the TensorRT that it carries."""

    version: str
    tensorrt: str


class Target(_Part):
    """A named device: what the engine is built for and what its speed is judged by."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    description: str
    gpu: str = Field(description="marketing name, as nvidia-smi or the vendor writes it")
    sm: str = Field(pattern=r"^\d+\.\d$", description="compute capability, such as '8.9'")
    sm_count: Annotated[int, Field(gt=0)]
    memory_gb: Rate
    bandwidth_gb_s: Rate
    peak_tflops: PeakRates
    power_modes: tuple[PowerMode, ...] = Field(min_length=1, description="the default mode first")
    engine: EngineSupport
    jetpack: tuple[Jetpack, ...] = ()
    notes: str = ""

    @property
    def is_jetson(self) -> bool:
        """Whether the device is a Jetson module, where plans are built on the device itself."""
        return bool(self.jetpack)


def list_targets() -> tuple[str, ...]:
    """Names of all shipped targets, sorted."""
    return tuple(sorted(file.stem for file in resource_dir("export/targets").glob("*.yaml")))


def known_target(name: str) -> str:
    """The name itself, if a target has it.

    Raises:
        ValueError: none has; the message suggests the closest and lists all.
    """
    known = list_targets()
    if name not in known:
        raise ValueError(f"unknown target '{name}'.{did_you_mean(name, known)} Targets: {', '.join(known)}")
    return name


def load_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: unknown name (with the closest and all names), or a damaged target file.
    """
    try:
        known_target(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _read(resource_dir("export/targets") / f"{name}.yaml")


def _read(path: Path) -> Target:
    parsed = parse_yaml(path.read_text(encoding="utf-8"))
    if parsed.problems:
        raise UsageError(f"target {path}: {'; '.join(map(str, parsed.problems))}")
    try:
        target = Target.model_validate_json(json.dumps(parsed.value), strict=True)
    except ValidationError as error:
        found = "; ".join(f"{dotted(item['loc'])}: {item['msg']}" for item in error.errors(include_url=False))
        raise UsageError(f"target {path}: {found}") from error
    if target.name != path.stem:
        raise UsageError(f"target {path}: name must be '{path.stem}' like the file, got '{target.name}'")
    return target
