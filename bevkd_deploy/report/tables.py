"""The tables of a benchmark, once, as text cells; Markdown, HTML and the terminal only dress them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bevkd_deploy.report import text
from bevkd_deploy.report.bench_view import P99_MIN_SAMPLES, Backend, Bench, Gate

Tone = Literal["plain", "good", "bad", "warn", "muted"]

RESULT_TONES: dict[str, Tone] = {"pass": "good", "fail": "bad", "unstable": "warn", "skipped": "muted"}

#: Rows of the evaluation table: dotted key of the summary and what it is.
EVALUATION_ROWS: tuple[tuple[str, str], ...] = (
    ("present.mean_ap", "mAP, classes with ground truth"),
    ("present.nd_score", "NDS, classes with ground truth"),
    ("mean_ap", "mAP, all classes"),
    ("nd_score", "NDS, all classes"),
    ("tp_errors.trans_err", "mATE, translation (m)"),
    ("tp_errors.scale_err", "mASE, size (1 - IoU)"),
    ("tp_errors.orient_err", "mAOE, heading (rad)"),
    ("tp_errors.vel_err", "mAVE, velocity (m/s)"),
    ("tp_errors.attr_err", "mAAE, attribute (1 - accuracy)"),
)

#: Marks a p99 of too few samples.
INDICATIVE = "†"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and a tone that only repeats what the text says."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Column:
    """One column; numbers are set flush right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A titled table with notes under it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The gates in one word and one sentence."""

    word: Literal["passed", "failed", "undecided", "no verdict"]
    sentence: str
    tone: Tone


def verdict(bench: Bench) -> Verdict:
    """Sum up the gates. Skipped gates are named and never counted as passed."""
    counts = {
        result: [gate.name for gate in bench.gates if gate.result == result]
        for result in ("pass", "fail", "unstable", "skipped")
    }
    tally = ", ".join(f"{len(names)} {result}" for result, names in counts.items() if names)
    parity = _parity_warning(bench)
    failed = [gate.name for gate in bench.gates if gate.result == "fail" and gate.required]
    undecided = [gate.name for gate in bench.gates if gate.result == "unstable" and gate.required]
    if not bench.gates:
        return Verdict("no verdict", "The recipe defines no gates." + parity, "muted")
    if failed:
        return Verdict("failed", f"{_names(failed)} failed ({tally}).{parity}", "bad")
    if undecided:
        return Verdict("undecided", f"The measurement could not decide {_names(undecided)} ({tally}).{parity}", "warn")
    if not counts["pass"]:
        return Verdict("no verdict", f"No gate could be checked here ({tally}).{parity}", "muted")
    return Verdict("passed", f"Every required gate that could be checked here passes ({tally}).{parity}", "good")


def results_table(bench: Bench, *, compact: bool = False) -> Table:
    """One row per backend: quality, latency, size. `compact` leaves out what a narrow terminal has no room for."""
    latencies = ("p50 ms", "p90 ms", "p99 ms")
    if compact:
        columns = [Column("backend")]
        names: tuple[str, ...] = ("mAP", "NDS", "Δ teacher", "Δ student", *latencies, "MB")
    else:
        columns = [Column("backend"), Column("precision")]
        deltas = ("Δ mAP teacher", "Δ mAP student")
        names = ("mAP", "NDS", *deltas, *latencies, "CV", "samples", "speed-up", "size MB", "memory MB")
    columns += [Column(name, numeric=True) for name in names]
    rows = tuple(_results_row(bench, backend, compact) for backend in bench.backends)
    return Table("Results", tuple(columns), rows, tuple(_results_notes(bench, compact)))


def gates_table(bench: Bench, *, compact: bool = False) -> Table:
    """One row per gate. `compact` sets the remarks under the table instead of in a column."""
    numbers = tuple(Column(name, numeric=True) for name in ("value", "interval", "limit"))
    columns = (Column("gate"), *numbers, Column("result"), *(() if compact else (Column("remark"),)))
    rows = tuple(
        (
            Cell(gate.name),
            Cell(text.general(gate.value)),
            Cell(text.interval(gate.interval)),
            Cell(gate_limit(gate)),
            Cell(gate.result, RESULT_TONES[gate.result]),
            *(() if compact else (Cell(_remark(gate)),)),
        )
        for gate in bench.gates
    )
    notes = tuple(f"{gate.name}: {_remark(gate)}" for gate in bench.gates if compact and _remark(gate))
    return Table("Gates", columns, rows, notes)


def gate_limit(gate: Gate) -> str:
    """The limit of a gate as text."""
    return text.describe(gate.limit)


def parity_table(bench: Bench) -> Table:
    """One row per compared output."""
    names = ("max abs", "relative L2", "cosine", "non-finite", "unmatched")
    columns = (
        *(Column(name) for name in ("reference", "candidate", "tier", "output")),
        *(Column(name, numeric=True) for name in names),
        Column("result"),
    )
    rows = tuple(
        (
            Cell(row.reference),
            Cell(row.candidate),
            Cell(row.tier),
            Cell(row.output),
            Cell(_scientific(row.max_abs)),
            Cell(_scientific(row.rel_l2)),
            Cell(text.ABSENT if row.cosine is None else f"{row.cosine:.6f}"),
            Cell(
                text.ABSENT if row.nonfinite is None else str(row.nonfinite),
                "bad" if row.nonfinite else "plain",
            ),
            Cell(text.ABSENT if row.unmatched is None else str(row.unmatched)),
            Cell(row.result, RESULT_TONES[row.result]),
        )
        for row in bench.parity
    )
    return Table("Parity", columns, rows)


def actors(bench: Bench) -> list[tuple[str, Backend]]:
    """Teacher, student in PyTorch and engine, those that have a measured accuracy."""
    named = (("teacher", bench.find("teacher")), ("student", bench.find("student-torch")), ("engine", bench.engine))
    return [(name, row) for name, row in named if row is not None and row.accuracy is not None]


def class_names(bench: Bench) -> list[str]:
    """Classes with an AP in any row, in the order of the file."""
    names: dict[str, None] = {}
    for _, row in actors(bench):
        if row.accuracy:
            names.update(dict.fromkeys(row.accuracy.per_class))
    return list(names)


def per_class_table(bench: Bench) -> Table:
    """AP of each class for teacher, student and engine."""
    shown = actors(bench)
    columns = (Column("class"), *(Column(f"{name} ({row.precision})", numeric=True) for name, row in shown))
    rows = tuple(
        (
            Cell(class_name),
            *(Cell(text.metric(row.accuracy.per_class.get(class_name))) for _, row in shown if row.accuracy),
        )
        for class_name in class_names(bench)
    )
    return Table("Average precision by class", columns, rows)


def evaluations_table(evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    """Scores and true-positive errors of each evaluation (the devkit's metrics_summary keys)."""
    columns = (Column("metric"), *(Column(name, numeric=True) for name in evaluations))
    rows = []
    for key, name in EVALUATION_ROWS:
        values = [dict(text.flatten(summary)).get(key) for summary in evaluations.values()]
        if any(value is not None for value in values):
            rows.append((Cell(name), *(Cell(text.metric(value)) for value in values)))
    notes = ("For the five errors, lower is better; a class without a match counts as 1.",) if rows else ()
    return Table("Scores and true-positive errors", columns, tuple(rows), notes)


def stages_table(bench: Bench) -> Table:
    """Milliseconds of each stage; percentiles of stages do not add up, the total is measured."""
    measured = [backend for backend in bench.backends if backend.stages_ms]
    stages = dict.fromkeys(stage for backend in measured for stage in backend.stages_ms)
    columns = (
        Column("backend"),
        Column("precision"),
        *(Column(f"{stage} ms", numeric=True) for stage in stages),
    )
    rows = tuple(
        (Cell(row.name), Cell(row.precision), *(Cell(text.milliseconds(row.stages_ms.get(stage))) for stage in stages))
        for row in measured
    )
    notes = ("The total is measured on its own; percentiles of stages do not add up to it.",) if rows else ()
    return Table("Stages (p50)", columns, rows, notes)


def environment_table(bench: Bench) -> Table:
    """Where the numbers come from."""
    pairs = text.flatten({**bench.environment, "frames": bench.frames})
    rows = tuple((Cell(key), Cell(text.describe(value))) for key, value in pairs)
    return Table("Environment", (Column("key"), Column("value")), rows)


def _results_row(bench: Bench, row: Backend, compact: bool) -> tuple[Cell, ...]:
    accuracy, latency = row.accuracy, row.latency_ms
    shared = (
        Cell(text.metric(accuracy.mAP if accuracy else None)),
        Cell(text.metric(accuracy.NDS if accuracy else None)),
        Cell(text.delta(_map_delta(row, bench.find("teacher")))),
        Cell(text.delta(_map_delta(row, bench.find("student-torch")))),
        Cell(text.milliseconds(latency.p50 if latency else None)),
        Cell(text.milliseconds(latency.p90 if latency else None)),
        Cell(_p99(row)),
    )
    size = Cell(text.megabytes(row.size_mb))
    if compact:
        return (Cell(f"{row.name} {row.precision}"), *shared, size)
    return (
        Cell(row.name),
        Cell(row.precision),
        *shared,
        Cell(text.percent(latency.cv if latency else None)),
        Cell(str(latency.n) if latency else text.ABSENT),
        Cell(speed_up(bench, row)),
        size,
        Cell(text.megabytes(row.memory_mb)),
    )


def speed_up(bench: Bench, row: Backend) -> str:
    """Median latency of the teacher over that of a row, only where both ran on one device."""
    teacher = bench.find("teacher")
    if not (teacher and teacher.latency_ms and row.latency_ms) or not bench.same_device(teacher, row):
        return text.ABSENT
    ratio = teacher.latency_ms.p50 / row.latency_ms.p50
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def _map_delta(row: Backend, reference: Backend | None) -> float | None:
    if reference is None or reference.key == row.key or not (row.accuracy and reference.accuracy):
        return None
    return row.accuracy.mAP - reference.accuracy.mAP


def _p99(row: Backend) -> str:
    if row.latency_ms is None or row.latency_ms.p99 is None:
        return text.ABSENT
    mark = INDICATIVE if row.latency_ms.p99_is_indicative else ""
    return text.milliseconds(row.latency_ms.p99) + mark


def _results_notes(bench: Bench, compact: bool) -> Iterable[str]:
    names = class_names(bench)
    known = [name for name in names if any(_has_ap(row, name) for _, row in actors(bench))]
    if len(known) < len(names):
        yield f"mAP and NDS over the {len(known)} classes that have ground truth in these frames."
    few = sorted({row.latency_ms.n for row in bench.backends if row.latency_ms and row.latency_ms.p99_is_indicative})
    if few:
        counts = " or ".join(str(count) for count in few)
        yield f"{INDICATIVE} indicative only: p99 of {counts} samples (a p99 needs {P99_MIN_SAMPLES})."
    if compact:
        yield "Δ: difference of mAP to the teacher and to the student in PyTorch."
    else:
        yield (
            "Δ mAP: difference to the teacher and to the student in PyTorch. CV: standard deviation / mean of the "
            "latency. Speed-up: median latency of the teacher / that of the row."
        )
    yield from _device_notes(bench)
    for row in bench.backends:
        if row.reason:
            yield f"{row.name} {row.precision}: {row.reason}"


def _device_notes(bench: Bench) -> Iterable[str]:
    devices = dict.fromkeys(bench.device_of(row) for row in bench.measured)
    if len(devices) > 1:
        for device in devices:
            rows = [f"{row.name} {row.precision}" for row in bench.measured if bench.device_of(row) == device]
            yield f"On {device}: {_names(rows)}."


def _has_ap(row: Backend, class_name: str) -> bool:
    return row.accuracy is not None and row.accuracy.per_class.get(class_name) is not None


def _parity_warning(bench: Bench) -> str:
    """A broken parity is said next to the gates, also where no gate looks at it."""
    broken = [f"{row.candidate} {row.output}" for row in bench.parity if row.result == "fail"]
    return f" Parity fails: {_names(broken)}." if broken else ""


def _remark(gate: Gate) -> str:
    remarks = [] if gate.required else ["not required"]
    return "; ".join([*remarks, *([gate.reason] if gate.reason else [])])


def _scientific(value: float | None) -> str:
    return text.ABSENT if value is None else f"{value:.2e}"


def _names(names: list[str]) -> str:
    return ", ".join(names)
