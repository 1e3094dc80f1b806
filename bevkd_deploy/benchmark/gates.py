"""Gates: the recipe's pass/fail criteria, decided on what was measured.

A gate passes or fails only on a number that was measured, on the device it asks for, and that noise cannot turn
around: latency comes with a 95 % bootstrap interval over rounds, and a limit inside it makes the gate `unstable`.
What was not measured is `skipped`, never passed; `require` turns a skip into a failure.
Accuracy, size and parity are deterministic for an artefact, so their value decides.
Source of the interval: percentile bootstrap (Efron 1979); rounds are resampled, because samples of one round share
its clock and its neighbours. For a ratio both backends are resampled by the same rounds, as they were interleaved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.benchmark.latency import LatencySamples
from bevkd_deploy.benchmark.result import BackendResult, Bench, GateOutcome, GateResult
from bevkd_deploy.contracts.errors import BevkdError, GateFailed, UnstableMeasurement, UsageError
from bevkd_deploy.contracts.recipe import GateConfig
from bevkd_deploy.contracts.suggest import did_you_mean
from bevkd_deploy.contracts.target import list_targets, load_target

CONFIDENCE = 0.95

#: Resampling is seeded: one result file always gives one verdict.
_RESAMPLES, _SEED = 2000, 0

#: With fewer samples than this, chances are over 5 % that not one of the slowest percent was seen (0.99^n).
P99_MIN_SAMPLES = 299

_LATENCY_METRIC = re.compile(r"latency_p(\d+)_ms")

#: Words that vendors and tools write or leave out; every other one ("Laptop", "Ti") makes another device.
_IGNORED_WORDS = {"nvidia", "gpu"}


@dataclass(frozen=True)
class _Reading:
    """A gate's number before its limit is looked at; without a value, `reason` says why."""

    value: float | None
    interval: tuple[float, float] | None = None
    reason: str = ""
    broken: bool = False


def evaluate_gates(
    gates: Sequence[GateConfig],
    bench: Bench,
    samples: Mapping[str, LatencySamples],
    require: Sequence[str] = (),
) -> tuple[GateResult, ...]:
    """Decide every gate.

    Args:
        gates: of the recipe.
        bench: the measurements; its own `gates` are not looked at.
        samples: raw latencies by `BackendResult.key`; a row without samples gets no interval.
        require: names of gates that must be measured: skipped counts as failed, and they decide the exit code.

    Raises:
        UsageError: `require` names no gate of the recipe.
    """
    names = [gate.name for gate in gates]
    for name in require:
        if name not in names:
            raise UsageError(f"no gate '{name}' in the recipe.{did_you_mean(name, names)} Gates: {', '.join(names)}")
    return tuple(_evaluate(gate, bench, samples, gate.name in require) for gate in gates)


def gate_error(results: Sequence[GateResult]) -> BevkdError | None:
    """What the required gates come to: None, `GateFailed` (exit code 1) or `UnstableMeasurement` (exit code 3)."""
    required = [gate for gate in results if gate.required]
    failed = [gate for gate in required if gate.result == "fail"]
    if failed:
        return GateFailed("; ".join(f"gate {gate.name} failed: {gate.reason}, limit {gate.limit}" for gate in failed))
    unstable = [gate.name for gate in required if gate.result == "unstable"]
    if unstable:
        return UnstableMeasurement(
            f"undecided: {', '.join(unstable)}. The limit lies inside the 95 % interval of the measurement: keep the "
            "machine idle, lock its clocks, or raise benchmark.rounds"
        )
    return None


def bootstrap_interval(
    samples: LatencySamples, percentile: float, versus: LatencySamples | None = None, *, drop: bool = False
) -> tuple[float, float] | None:
    """95 % interval of a latency percentile, of its ratio to another backend's, or of the drop below it.

    Args:
        samples: of the backend.
        percentile: 0..100.
        versus: of the other backend, measured in the same rounds.
        drop: `versus - samples` instead of `samples / versus`.

    Returns:
        Low and high bound, or None for a single round, which says nothing about another one.
    """
    rounds = len(samples.total_ms)
    if rounds < 2 or (versus is not None and len(versus.total_ms) != rounds):
        return None
    picks = np.random.default_rng(_SEED).integers(0, rounds, size=(_RESAMPLES, rounds))
    # Few rounds give few distinct resamples; each is computed once.
    distinct, which = np.unique(np.sort(picks, axis=1), axis=0, return_inverse=True)
    values = _percentiles(samples, distinct, percentile)
    if versus is not None:
        others = _percentiles(versus, distinct, percentile)
        values = others - values if drop else values / others
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[which.ravel()], [tail, 100 - tail])
    return float(low), float(high)


def device_matches(wanted: str, device: str) -> bool:
    """Whether a row's device is the one that a gate asks for.

    Args:
        wanted: name of a target in export/targets, or words of a device's name ("cpu", "EPYC").
        device: `BackendResult.device`.
    """
    if wanted not in list_targets():
        return set(_words(wanted)) <= set(_words(device))
    target = load_target(wanted)
    if target.is_jetson:
        return set(_words(target.name)) <= set(_words(device))
    return [word for word in _words(device) if word not in _IGNORED_WORDS] == [
        word for word in _words(target.gpu) if word not in _IGNORED_WORDS
    ]


def _evaluate(gate: GateConfig, bench: Bench, samples: Mapping[str, LatencySamples], must_run: bool) -> GateResult:
    reading = _read(gate, bench, samples)
    sign, limit, suffix = _limit(gate)
    outcome: GateOutcome
    if reading.value is None:
        outcome = "fail" if must_run else "skipped"
    elif reading.broken:
        outcome = "fail"
    else:
        met = {sign * bound >= sign * limit for bound in reading.interval or (reading.value,)}
        outcome = "unstable" if len(met) == 2 else "pass" if met.pop() else "fail"
    return GateResult(
        name=gate.name,
        value=reading.value,
        interval=reading.interval,
        limit=f"{'>=' if sign > 0 else '<='} {limit:g}{suffix}",
        result=outcome,
        required=gate.required or must_run,
        reason=reading.reason,
    )


def _limit(gate: GateConfig) -> tuple[int, float, str]:
    """Direction (1: at least, -1: at most), limit, and what the limit is relative to."""
    if gate.min is not None:
        return 1, gate.min, ""
    if gate.max is not None:
        return -1, gate.max, ""
    if gate.min_ratio is not None:
        return 1, gate.min_ratio, f" x {gate.vs}"
    if gate.max_ratio is not None:
        return -1, gate.max_ratio, f" x {gate.vs}"
    assert gate.max_drop is not None  # the recipe schema: exactly one of the five
    return -1, gate.max_drop, f" below {gate.vs}"


def _read(gate: GateConfig, bench: Bench, samples: Mapping[str, LatencySamples]) -> _Reading:
    row = bench.find(gate.of)
    if row is None:
        return _missing_row(gate.of, bench)
    if gate.device is not None and not device_matches(gate.device, row.device):
        return _Reading(None, reason=f"asks for device {gate.device}, {row.key} ran on {row.device}")
    own = _metric(gate.metric, row, bench)
    if own.value is None:
        return own
    latency = _LATENCY_METRIC.fullmatch(gate.metric)
    if gate.vs is None:
        reason = f"{gate.metric} of {row.key} is {own.value:.4g}{_tail_note(gate.metric, row)}"
        return _Reading(own.value, _interval(latency, row, None, samples), own.reason or reason, own.broken)
    other = bench.find(gate.vs)
    if other is None:
        return _missing_row(gate.vs, bench)
    if latency and other.device != row.device:
        return _Reading(None, reason=f"{row.key} ran on {row.device}, {other.key} on {other.device}: no ratio of times")
    reference = _metric(gate.metric, other, bench)
    if reference.value is None:
        return reference
    reason = f"{gate.metric} of {row.key} is {own.value:.4g}, of {other.key} {reference.value:.4g}"
    reason += _tail_note(gate.metric, row)
    if gate.max_drop is not None:
        interval = _interval(latency, row, other, samples, drop=True)
        return _Reading(reference.value - own.value, interval, own.reason or reason, own.broken)
    if reference.value == 0:
        return _Reading(None, reason=f"{reason}: no ratio to 0")
    interval = _interval(latency, row, other, samples)
    return _Reading(own.value / reference.value, interval, own.reason or reason, own.broken)


def _missing_row(reference: str, bench: Bench) -> _Reading:
    rows = ", ".join(row.key for row in bench.backends) or "none"
    return _Reading(None, reason=f"no row '{reference}' in this benchmark; it has {rows}")


def _metric(metric: str, row: BackendResult, bench: Bench) -> _Reading:
    """The value of a metric in one row, or why it has none."""
    value: float | None = None
    if metric == "parity_rel_l2":
        return _parity(row, bench)
    if metric == "size_mb":
        value = row.size_mb
    elif latency := _LATENCY_METRIC.fullmatch(metric):
        value = getattr(row.latency_ms, f"p{latency.group(1)}") if row.latency_ms else None
    elif row.accuracy:
        value = getattr(row.accuracy, metric)
    because = f": {row.reason}" if row.reason else ""
    return _Reading(value, reason="" if value is not None else f"{row.key} has no {metric}{because}")


def _parity(row: BackendResult, bench: Bench) -> _Reading:
    rows = [item for item in bench.parity if (item.candidate, item.tier) == (row.name, row.precision)]
    if not rows:
        return _Reading(None, reason=f"no parity was measured for {row.key}")
    nonfinite = sum(item.nonfinite for item in rows)
    broken = f"{row.key} returned {nonfinite} NaN or infinite values" if nonfinite else ""
    return _Reading(max(item.rel_l2 for item in rows), reason=broken, broken=bool(nonfinite))


def _interval(
    latency: re.Match[str] | None,
    row: BackendResult,
    other: BackendResult | None,
    samples: Mapping[str, LatencySamples],
    *,
    drop: bool = False,
) -> tuple[float, float] | None:
    if latency is None or row.key not in samples or (other is not None and other.key not in samples):
        return None
    return bootstrap_interval(
        samples[row.key], float(latency.group(1)), samples[other.key] if other else None, drop=drop
    )


def _percentiles(samples: LatencySamples, picks: NDArray[np.int64], percentile: float) -> NDArray[np.float64]:
    """Percentile of the pooled samples of each selection of rounds [S, R] -> [S]."""
    return np.array([np.percentile(samples.total_ms[pick], percentile) for pick in picks])


def _tail_note(metric: str, row: BackendResult) -> str:
    if metric != "latency_p99_ms" or row.latency_ms is None or row.latency_ms.n >= P99_MIN_SAMPLES:
        return ""
    return f" (of {row.latency_ms.n} samples; a 99th percentile wants {P99_MIN_SAMPLES})"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
