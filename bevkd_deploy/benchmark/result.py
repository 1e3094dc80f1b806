"""`bench.json`: what a benchmark measured, on what, and what follows from it.

The file is the source of every table, page and verdict; nothing is printed that is not in it. A number that was not
measured is null, never 0, and its row says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json, sha256_file, write_json
from bevkd_deploy.contracts.sidecar import ParityRow

BENCH_SCHEMA: Literal["bevkd.benchmark/1"] = "bevkd.benchmark/1"

BackendName = Literal["teacher", "student-torch", "onnxruntime", "tensorrt", "tensorrt_rtx"]
GateOutcome = Literal["pass", "fail", "unstable", "skipped"]

_BYTES_PER_MB = 1_000_000


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class LatencySummary(_Entry):
    """Milliseconds over `n` samples; `cv` is the standard deviation over the mean."""

    n: int = Field(gt=0)
    mean: float = Field(gt=0)
    cv: float = Field(ge=0)
    min: float = Field(ge=0)
    p50: float = Field(ge=0)
    p90: float = Field(ge=0)
    p99: float = Field(ge=0)
    max: float = Field(ge=0)


class Accuracy(_Entry):
    """Detection quality on the validation split.

    Attributes:
        mAP: mean over the classes that have ground truth under the official filters; on a full split, all ten.
        NDS: likewise.
        per_class: AP of each class, null without ground truth.
        mAP_ten_classes: the devkit's figure, where a class without ground truth counts as 0.
        NDS_ten_classes: likewise.
    """

    mAP: float = Field(ge=0, le=1)  # noqa: N815 the benchmark's own name
    NDS: float = Field(ge=0, le=1)
    per_class: dict[str, float | None] = {}
    mAP_ten_classes: float | None = Field(None, ge=0, le=1)  # noqa: N815
    NDS_ten_classes: float | None = Field(None, ge=0, le=1)


class BackendResult(_Entry):
    """One row: a model, the software that ran it, and what was measured.

    Attributes:
        name: which model and which software.
        precision: fp32, fp16, ...
        device: where it ran; rows of different devices are never divided by each other.
        engine: file name of the artefact; null for a model that runs in PyTorch.
        engine_sha256: its hash; every number of the row belongs to this file alone.
        size_mb: its size in 10^6 bytes.
        latency_ms: see `Bench.boundary`.
        stages_ms: median milliseconds of each stage; they do not add up to the median of the whole.
        memory_mb: peak resident memory in 10^6 bytes of a process that runs this row alone.
        accuracy: on the whole validation split.
        reason: why the row, or a part of it, was not measured.
    """

    name: BackendName
    precision: str
    device: str
    engine: str | None = None
    engine_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    size_mb: float | None = Field(None, gt=0)
    latency_ms: LatencySummary | None = None
    stages_ms: dict[str, float] = {}
    memory_mb: float | None = Field(None, gt=0)
    accuracy: Accuracy | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """Unique name of the row, also of its samples in `samples.npz`."""
        return backend_key(self.name, self.precision)

    @model_validator(mode="after")
    def _hash_goes_with_file(self) -> BackendResult:
        if (self.engine is None) != (self.engine_sha256 is None):
            raise ValueError("engine and engine_sha256 go together")
        return self


class GateResult(_Entry):
    """One criterion and what came out of it.

    Attributes:
        name: as in the recipe.
        value: the metric, or its ratio or drop where the gate compares two rows; null when it was not measured.
        interval: 95 % interval of `value`; null where one run gives none.
        limit: such as "<= 33".
        result: pass, fail, unstable (the interval holds the limit) or skipped (not measured, or another device).
        required: whether it decides the exit code.
        reason: what the value is, or why there is none.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    limit: str
    result: GateOutcome
    required: bool = True
    reason: str = ""


class Bench(_Entry):
    """A whole `bench.json`.

    Attributes:
        schema_: identifies the format.
        environment: what `environment.collect_environment` found.
        frames: how many frames the latency was measured on.
        boundary: what `latency_ms` covers, in words.
        backends: one row per model and software; the measured artefact before other artefacts.
        parity: agreement of the artefacts with their reference.
        gates: the recipe's criteria.
    """

    schema_: Literal["bevkd.benchmark/1"] = Field(BENCH_SCHEMA, alias="schema")
    environment: dict[str, Any]
    frames: int = Field(gt=0)
    boundary: str
    backends: tuple[BackendResult, ...]
    parity: tuple[ParityRow, ...] = ()
    gates: tuple[GateResult, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Bench:
        for what, names in (("backends", [row.key for row in self.backends]), ("gates", [g.name for g in self.gates])):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} must be unique, got {names}")
        return self

    def find(self, reference: str) -> BackendResult | None:
        """The row that a recipe's gate names.

        Args:
            reference: "engine" (the measured artefact: the first row that has one), the name of a row, or its name and
                precision ("onnxruntime-fp32").
        """
        if reference == "engine":
            return next((row for row in self.backends if row.engine is not None), None)
        return next((row for row in self.backends if reference in (row.key, row.name)), None)


def backend_key(name: str, precision: str) -> str:
    """Unique name of a row: what `measure_latency` and `samples.npz` call it."""
    return f"{name}-{precision}"


def artefact_fields(path: Path | str) -> dict[str, Any]:
    """`engine`, `engine_sha256` and `size_mb` of an artefact, for its row. Links are followed."""
    file = Path(path).resolve()
    return {"engine": file.name, "engine_sha256": sha256_file(file), "size_mb": file.stat().st_size / _BYTES_PER_MB}


def write_bench(path: Path | str, bench: Bench) -> Path:
    """Write `bench.json`."""
    return write_json(path, bench.model_dump(mode="json", by_alias=True))


def load_bench(path: Path | str) -> Bench:
    """Read `bench.json`.

    Raises:
        ArtifactError: the file is missing or does not follow the schema; all problems are listed.
    """
    value = read_json(path, "benchmark result")
    found = value.get("schema") if isinstance(value, dict) else None
    if found != BENCH_SCHEMA:
        raise ArtifactError(f"{path} has schema {found!r}, this version reads {BENCH_SCHEMA!r}")
    try:
        return Bench.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ArtifactError(
            f"{path} is no valid benchmark result: {problems}. Measure again: bevkd benchmark"
        ) from error
