"""The sidecar: a JSON file beside each exported artefact that says what it is, what it was made of and how to use it.

`student.fp16.onnx` has `student.fp16.onnx.json`. The file holds the hash of its artefact, so an artefact and a
sidecar of different exports are never used together, and a plan is loaded only when its hash is the recorded one
(loading a plan executes native code).
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json, sha256_file, write_text
from bevkd_deploy.contracts.graph_spec import GraphSpec, TensorSpec

SIDECAR_SCHEMA: Literal["bevkd.sidecar/1"] = "bevkd.sidecar/1"
UNTRAINED = "untrained"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Entry(BaseModel):
    """Base of everything in a sidecar: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ParityRow(Entry):
    """One output of two implementations of one graph, compared on the same inputs.

    `max_abs` is in the output's unit; `rel_l2` is the L2 norm of the difference over that of the reference;
    `unmatched` counts detections that only one side has. Non-finite values are counted and left out of the numbers.
    """

    reference: str
    candidate: str
    tier: str = Field(description="precision of the candidate: fp32, fp16, ...")
    output: str
    max_abs: float = Field(ge=0, allow_inf_nan=False)
    rel_l2: float = Field(ge=0, allow_inf_nan=False)
    cosine: float = Field(ge=-1, le=1)
    nonfinite: int = Field(ge=0)
    unmatched: int = Field(0, ge=0)
    result: Literal["pass", "fail"]


class Island(Entry):
    """Nodes that stay in FP32 inside a graph of lower precision, and why."""

    reason: str
    nodes: tuple[str, ...]


class Library(Entry):
    """What wrote the artefact."""

    name: Literal["onnx", "tensorrt", "tensorrt_rtx"]
    version: str = Field(description="of the library; for ONNX the opset")


class Sidecar(Entry):
    """Everything a host needs to check and to feed one artefact.

    `sm` lists the compute capabilities a plan was compiled for ("8.9"); it is empty for ONNX, which is portable.
    `precision_table` counts nodes by operator and float type, for instance {"Conv": {"fp16": 41}}.
    """

    schema_: Literal["bevkd.sidecar/1"] = Field(SIDECAR_SCHEMA, alias="schema")
    kind: Literal["onnx", "plan"]
    file: str
    sha256: Sha256
    onnx_sha256: Sha256
    checkpoint_sha256: Sha256 | Literal["untrained"] = UNTRAINED
    recipe: str
    recipe_sha256: Sha256 | None = None
    precision: str
    precision_table: dict[str, dict[str, int]]
    fp32_islands: tuple[Island, ...] = ()
    target: str | None = None
    sm: tuple[str, ...] = ()
    library: Library
    graph: GraphSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration_set_sha256: Sha256 | None = None
    build_seconds: float | None = Field(None, ge=0)
    parity: tuple[ParityRow, ...] = ()
    created: str
    commit: str | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _consistent(self) -> Sidecar:
        if self.kind == "onnx" and self.sha256 != self.onnx_sha256:
            raise ValueError("an ONNX artefact's sha256 and onnx_sha256 must be the same")
        if self.inputs != self.graph.inputs() or self.outputs != self.graph.outputs():
            raise ValueError("inputs and outputs must be those of the graph contract")
        return self


def utc_now() -> str:
    """Current time, ISO 8601 in UTC, whole seconds."""
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


def sidecar_path(artefact_path: Path | str) -> Path:
    """Where the sidecar of an artefact is: `<file>.json` beside it."""
    path = Path(artefact_path)
    return path.with_name(path.name + ".json")


def write_sidecar(artefact_path: Path | str, sidecar: Sidecar) -> Path:
    """Write `<file>.json` beside the artefact it describes.

    Raises:
        ArtifactError: the sidecar names another file, or the file's hash is not the one recorded.
    """
    path = Path(artefact_path)
    actual = sha256_file(path)
    if sidecar.file != path.name or sidecar.sha256 != actual:
        raise ArtifactError(
            f"the sidecar describes {sidecar.file} ({sidecar.sha256[:12]}), the artefact is {path.name} ({actual[:12]})"
        )
    return write_text(sidecar_path(path), sidecar.model_dump_json(by_alias=True, indent=2) + "\n")


def load_sidecar(artefact_path: Path | str) -> Sidecar:
    """Read the sidecar of an artefact and check that it belongs to it. Links (`student.plan`) are followed.

    Raises:
        ArtifactError: the artefact or its sidecar is missing or malformed, or the artefact is not the recorded one.
    """
    path = Path(artefact_path)
    if not path.is_file():
        raise ArtifactError(f"artefact not found: {path}; `bevkd export` writes it")
    path = path.resolve()
    where = sidecar_path(path)
    if not where.is_file():
        raise ArtifactError(
            f"{path} has no sidecar: expected {where.name} beside it. An artefact is used only with its sidecar; copy "
            "both, or rebuild with `bevkd export --run <run directory>`"
        )
    sidecar = _parse(where)
    actual = sha256_file(path)
    if actual != sidecar.sha256:
        raise ArtifactError(
            f"{path.name} is not the file its sidecar describes (stale or changed): expected sha256 "
            f"{sidecar.sha256[:12]}, got {actual[:12]}. Rebuild it: `{rebuild_command(sidecar)}`"
        )
    return sidecar


def rebuild_command(sidecar: Sidecar) -> str:
    """The command that makes the artefact of a sidecar again."""
    target = f" --target {sidecar.target}" if sidecar.target else ""
    plan = "--onnx-only" if sidecar.kind == "onnx" else f"--trt {sidecar.precision}{target}"
    return f"bevkd export --run <run directory> {plan}"


def _parse(where: Path) -> Sidecar:
    value = read_json(where, "sidecar")
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SIDECAR_SCHEMA:
        raise ArtifactError(f"sidecar {where} has schema {found!r}, this version reads {SIDECAR_SCHEMA!r}")
    try:
        return Sidecar.model_validate_json(json.dumps(value))
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'sidecar'}: {e['msg']}" for e in error.errors())
        raise ArtifactError(f"sidecar {where} is not valid: {fields}") from error
