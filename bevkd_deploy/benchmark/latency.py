"""Latency of several backends on the same frames, measured side by side.

One frame is in flight at a time (batch 1, no pipelining), so the numbers are latencies, not throughput. Backends take
turns: round 1 of each, round 2 of each, and so on, in an order that reverses every round, so that a clock or a
neighbour that drifts meets all of them alike. Every sample is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.benchmark.result import LatencySummary
from bevkd_deploy.contracts.errors import ArtifactError, UsageError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.runtime.detector import Detector
from bevkd_deploy.runtime.stage_timer import StageTimer

F = TypeVar("F")

Stages = Mapping[str, float]

#: Runs one frame to the end (results on the host). May return the milliseconds of its stages.
Backend = Callable[[F], Stages | None]

#: Called after each round of a backend with its name, rounds done and rounds in all.
Progress = Callable[[str, int, int], None]

#: What `latency_ms` covers, for every backend, and what the stage `engine` of `stages_ms` covers: transfers to and from
#: a GPU are inside.
END_TO_END = (
    "end_to_end: decoded sensor arrays -> boxes; "
    "of it, stage engine (compute): graph inputs on the host -> boxes on the host"
)


@dataclass(frozen=True, eq=False)
class SensorFrame:
    """Decoded sensor arrays of one frame, as `Detector.detect` takes them."""

    images: Sequence[NDArray[np.uint8] | None]
    points: NDArray[np.float32]
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class LatencySamples:
    """Raw measurements of one backend.

    Attributes:
        total_ms: [rounds, frames].
        stages_ms: stage name to [rounds, frames]; empty where the backend does not report stages.
    """

    total_ms: NDArray[np.float64]
    stages_ms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.total_ms.ndim != 2 or not self.total_ms.size:
            raise ArtifactError(f"latency samples must be [rounds, frames], got {list(self.total_ms.shape)}")

    def summary(self) -> LatencySummary:
        """Statistics over all rounds and frames."""
        samples = self.total_ms.ravel()
        p50, p90, p99 = np.percentile(samples, [50, 90, 99])
        return LatencySummary(
            n=samples.size,
            mean=float(samples.mean()),
            cv=float(samples.std() / samples.mean()),
            min=float(samples.min()),
            p50=float(p50),
            p90=float(p90),
            p99=float(p99),
            max=float(samples.max()),
        )

    def stage_medians_ms(self) -> dict[str, float]:
        """Median of each stage. Medians of stages do not add up to the median of the whole."""
        return {name: float(np.median(samples)) for name, samples in self.stages_ms.items()}


def measure_latency(
    backends: Mapping[str, Backend[F]],
    frames: Sequence[F],
    rounds: int,
    warmup_seconds: float,
    progress: Progress | None = None,
) -> dict[str, LatencySamples]:
    """Time every backend on every frame, `rounds` times.

    Args:
        backends: unique name to a function that runs one frame to the end.
        frames: what the functions take; all of them take the same.
        rounds: at least 2 for an interval on a gate.
        warmup_seconds: each backend runs for at least this long, and at least one frame, before the first round.
        progress: told about each finished round.

    Raises:
        UsageError: there is nothing to measure, or a backend reports other stages from frame to frame.
    """
    if not backends or not frames or rounds < 1:
        raise UsageError(
            f"a benchmark needs backends, frames and rounds, got {len(backends)} backends, {len(frames)} frames and "
            f"{rounds} rounds"
        )
    for backend in backends.values():
        _warm_up(backend, frames, warmup_seconds)
    turns: dict[str, list[list[tuple[float, Stages]]]] = {name: [] for name in backends}
    order = list(backends)
    for number in range(rounds):
        for name in order:
            # The others have filled the caches since this backend's last turn: its first frame is not counted.
            backends[name](frames[0])
            turns[name].append([_timed(backends[name], frame) for frame in frames])
            if progress:
                progress(name, number + 1, rounds)
        order.reverse()
    return {name: _collect(name, turns[name]) for name in backends}


def detector_backend(detector: Detector) -> Backend[SensorFrame]:
    """A detector as a backend that reports its stages (`runtime.detector.STAGES`)."""

    def run(frame: SensorFrame) -> Stages:
        timer = StageTimer()
        detector.detect(frame.images, frame.points, frame.calibration, timer=timer)
        return timer.stages_ms

    return run


def save_samples(path: Path | str, samples: Mapping[str, LatencySamples]) -> Path:
    """Write all raw samples, [rounds, frames] in ms, to one `.npz`: `<backend>/total` and `<backend>/<stage>`."""
    arrays: dict[str, Any] = {}
    for name, backend in samples.items():
        arrays[f"{name}/total"] = backend.total_ms
        arrays.update({f"{name}/{stage}": values for stage, values in backend.stages_ms.items()})

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            np.savez_compressed(handle, **arrays)

    return write_atomic(path, write)


def load_samples(path: Path | str) -> dict[str, LatencySamples]:
    """Read what `save_samples` wrote.

    Raises:
        ArtifactError: the file is missing or holds something else.
    """
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        names = dict.fromkeys(key.rsplit("/", 1)[0] for key in arrays)
        return {name: LatencySamples(arrays[f"{name}/total"], _stages_of(name, arrays)) for name in names}
    except (OSError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} holds no latency samples: {error}") from error


def _stages_of(name: str, arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): values
        for key, values in arrays.items()
        if key.startswith(prefix) and key != f"{prefix}total"
    }


def _warm_up(backend: Backend[F], frames: Sequence[F], seconds: float) -> None:
    """Run until the time has passed: lazy allocation, kernel compilation and clock ramps end within seconds."""
    end = time.perf_counter() + seconds
    number = 0
    while number == 0 or time.perf_counter() < end:
        backend(frames[number % len(frames)])
        number += 1


def _timed(backend: Backend[F], frame: F) -> tuple[float, Stages]:
    start = time.perf_counter()
    stages = backend(frame)
    return 1e3 * (time.perf_counter() - start), stages or {}


def _collect(name: str, turns: list[list[tuple[float, Stages]]]) -> LatencySamples:
    total = np.array([[milliseconds for milliseconds, _ in turn] for turn in turns])
    stage_names = list(turns[0][0][1])
    if any(list(stages) != stage_names for turn in turns for _, stages in turn):
        raise UsageError(
            f"backend {name} reports other stages from frame to frame; report all of them, with 0 for none"
        )
    by_stage = {stage: np.array([[stages[stage] for _, stages in turn] for turn in turns]) for stage in stage_names}
    return LatencySamples(total, by_stage)
