"""`bench.json` as typed objects: the one place of this package that knows the keys of that file.

Only what is rendered is named here; further keys of the file are allowed and ignored, so that a newer writer does
not break an older reader. A number that was not measured is `None` and is rendered as "–", never as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json

BENCH_SCHEMA = "bevkd.benchmark/1"

#: Below this many samples a 99th percentile says little: with 300 the chance to have seen the slowest percent at
#: all is 95 % (ln 0.05 / ln 0.99 = 298).
P99_MIN_SAMPLES = 300

Result = Literal["pass", "fail", "unstable", "skipped"]


class _View(BaseModel):
    """Base of the views: frozen, unknown keys ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Latency(_View):
    """Milliseconds of one frame, over `n` samples (frames times rounds); `cv` is standard deviation / mean."""

    n: int
    mean: float
    cv: float | None = None
    min: float | None = None
    p50: float
    p90: float
    p99: float | None = None
    max: float | None = None

    @property
    def p99_is_indicative(self) -> bool:
        """Too few samples for the tail to be trusted."""
        return self.n < P99_MIN_SAMPLES


class Accuracy(_View):
    """Detection quality on the validation split; `per_class` holds the AP of each class, null without ground truth."""

    mAP: float  # noqa: N815 - the key of the file
    NDS: float
    per_class: dict[str, float | None] = Field(default_factory=dict)


class Backend(_View):
    """One row of the results: a model, the software that ran it, and what was measured."""

    name: str
    precision: str
    device: str | None = None
    engine: str | None = None
    engine_sha256: str | None = None
    size_mb: float | None = None
    latency_ms: Latency | None = None
    stages_ms: dict[str, float] = Field(default_factory=dict)
    memory_mb: float | None = None
    accuracy: Accuracy | None = None
    reason: str | None = Field(None, description="why this row was not measured")

    @property
    def key(self) -> str:
        """Unique name of the row."""
        return f"{self.name}-{self.precision}"

    @property
    def role(self) -> Literal["teacher", "student", "engine"]:
        """Which of the three actors this row is; it decides the colour."""
        if self.name == "teacher":
            return "teacher"
        return "student" if self.name == "student-torch" else "engine"


class Parity(_View):
    """Agreement of two backends on the same inputs."""

    reference: str
    candidate: str
    tier: str
    output: str
    max_abs: float | None = None
    rel_l2: float | None = None
    cosine: float | None = None
    nonfinite: int | None = None
    unmatched: int | None = None
    result: Result


class Gate(_View):
    """One pass/fail criterion and what came out of it."""

    name: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    limit: str | None = None
    result: Result
    required: bool = True
    reason: str | None = None


class Bench(_View):
    """A whole `bench.json`."""

    schema_: Literal["bevkd.benchmark/1"] = Field(alias="schema")
    environment: dict[str, Any] = Field(default_factory=dict)
    frames: int | None = None
    boundary: str = ""
    backends: tuple[Backend, ...] = ()
    parity: tuple[Parity, ...] = ()
    gates: tuple[Gate, ...] = ()

    @property
    def device(self) -> str:
        """Every device that a row was measured on, in the order of the rows; else that of the environment."""
        devices = dict.fromkeys(self.device_of(row) for row in self.measured)
        return " and ".join(devices) or self._machine

    @property
    def measured(self) -> tuple[Backend, ...]:
        """Rows that hold a measurement; a plan for another device has none."""
        return tuple(row for row in self.backends if row.latency_ms or row.accuracy)

    def device_of(self, row: Backend) -> str:
        """Device of one row."""
        return row.device or self._machine

    @property
    def _machine(self) -> str:
        return str(self.environment.get("device") or "unknown device")

    @property
    def date(self) -> str:
        """Date (and time) of the measurement, "" where the file does not say."""
        return str(self.environment.get("date") or "")

    @property
    def commit(self) -> str:
        """Commit of the code that was measured, "" where the file does not say."""
        return str(self.environment.get("commit") or "")

    @property
    def code(self) -> str:
        """The commit in short, and whether the code was changed after it; "" where the file does not say."""
        changed = " with changes" if self.environment.get("dirty") else ""
        return f"{self.commit[:12]}{changed}" if self.commit else ""

    def find(self, name: str) -> Backend | None:
        """First backend with a name."""
        return next((backend for backend in self.backends if backend.name == name), None)

    @property
    def engine(self) -> Backend | None:
        """The measured artefact: the first row that has one."""
        return next((row for row in self.backends if row.engine is not None), None)

    def same_device(self, first: Backend, second: Backend) -> bool:
        """Whether two rows were measured on one device, so that their times can be divided."""
        return self.device_of(first) == self.device_of(second)


def parse_bench(bench: Mapping[str, Any], source: str = "bench.json") -> Bench:
    """Check and type the content of a `bench.json`.

    Raises:
        ArtifactError: keys are missing or of the wrong type; all problems are listed.
    """
    try:
        return Bench.model_validate(dict(bench))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise ArtifactError(
            f"{source} is not a {BENCH_SCHEMA} file: {problems}. Write it anew with 'bevkd benchmark --json'"
        ) from error


def load_bench(path: Path | str) -> Bench:
    """Read a `bench.json` file."""
    content = read_json(path, "benchmark result")
    if not isinstance(content, dict):
        raise ArtifactError(f"benchmark result {path} holds a {type(content).__name__}, expected an object")
    return parse_bench(content, str(path))
