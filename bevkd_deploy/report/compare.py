"""Two `bench.json` files → differences, without a verdict across different devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevkd_deploy.report import text
from bevkd_deploy.report.bench_view import Backend, Bench, parse_bench
from bevkd_deploy.report.tables import Cell, Column, Table, Tone

#: Latency changes below this fraction are shown without judging them faster or slower.
SMALL_CHANGE = 0.05

#: Keys of the environment that differ between any two runs.
PER_RUN_KEYS = ("date", "timestamp", "created", "time", "commit", "git_commit")


def compare_benches(
    bench_a: Mapping[str, Any], bench_b: Mapping[str, Any], names: tuple[str, str] = ("A", "B")
) -> Table:
    """Table of B minus A for each backend that both files hold.

    Times of different devices are shown side by side without a change and without a tone: a ratio of two machines
    says nothing about the two students.

    Args:
        bench_a: content of the first `bench.json`, the reference.
        bench_b: content of the second.
        names: how the two files are called in the table.

    Raises:
        ArtifactError: one of them does not follow the schema.
    """
    view_a, view_b = parse_bench(bench_a, names[0]), parse_bench(bench_b, names[1])
    rows_b = {row.key: row for row in view_b.backends}
    pairs = [(row, rows_b[row.key]) for row in view_a.backends if row.key in rows_b]
    rows: list[tuple[Cell, ...]] = []
    for row_a, row_b in pairs:
        same_device = view_a.device_of(row_a) == view_b.device_of(row_b)
        rows += _backend_rows(row_a, row_b, same_device)
    columns = (
        Column("backend"),
        Column("metric"),
        Column(names[0], numeric=True),
        Column(names[1], numeric=True),
        Column("change", numeric=True),
        Column("note"),
    )
    return Table(f"{names[1]} against {names[0]}", columns, tuple(rows), tuple(_notes(view_a, view_b, pairs, names)))


def _backend_rows(row_a: Backend, row_b: Backend, same_device: bool) -> list[tuple[Cell, ...]]:
    """Rows of one backend; its name stands in the first only."""
    rows: list[tuple[Cell, ...]] = []
    for metric in ("mAP", "NDS"):
        a, b = getattr(row_a.accuracy, metric, None), getattr(row_b.accuracy, metric, None)
        change = None if a is None or b is None else b - a
        pair = (Cell(text.metric(a)), Cell(text.metric(b)))
        rows.append((Cell(metric), *pair, Cell(text.delta(change), _gain(change)), Cell("")))
    for percentile in ("p50", "p90", "p99"):
        a, b = getattr(row_a.latency_ms, percentile, None), getattr(row_b.latency_ms, percentile, None)
        pair = (Cell(text.milliseconds(a)), Cell(text.milliseconds(b)))
        rows.append((Cell(f"{percentile} ms"), *pair, *_latency_change(a, b, same_device)))
    a, b = row_a.size_mb, row_b.size_mb
    change = None if a is None or b is None or not a else b / a - 1
    rows.append((Cell("size MB"), Cell(text.megabytes(a)), Cell(text.megabytes(b)), Cell(_relative(change)), Cell("")))
    known = [row for row in rows if {row[1].text, row[2].text} != {text.ABSENT}]
    names = [f"{row_a.name} {row_a.precision}"] + [""] * len(known)
    return [(Cell(name), *row) for name, row in zip(names, known, strict=False)]


def _latency_change(a: float | None, b: float | None, same_device: bool) -> tuple[Cell, Cell]:
    if a is None or b is None:
        return Cell(text.ABSENT), Cell("")
    if not same_device:
        return Cell(text.ABSENT, "muted"), Cell("different devices")
    change = b / a - 1
    if abs(change) < SMALL_CHANGE:
        return Cell(_relative(change)), Cell("")
    return Cell(_relative(change), _gain(-change)), Cell("faster" if change < 0 else "slower")


def _relative(change: float | None) -> str:
    return text.ABSENT if change is None else f"{100 * change:+.1f} %"


def _gain(change: float | None) -> Tone:
    if change is None or abs(change) < 5e-5:
        return "plain"
    return "good" if change > 0 else "bad"


def _notes(view_a: Bench, view_b: Bench, pairs: list[tuple[Backend, Backend]], names: tuple[str, str]) -> list[str]:
    notes = []
    if view_a.device != view_b.device:
        notes.append(f"{names[0]} ran on {view_a.device}, {names[1]} on {view_b.device}: no verdict on their times.")
    if view_a.boundary != view_b.boundary:
        notes.append("The two files measure different boundaries; their latencies do not cover the same work.")
    if text.describe(view_a.frames) != text.describe(view_b.frames):
        notes.append("The two files were measured on different frames.")
    environment_a, environment_b = dict(text.flatten(view_a.environment)), dict(text.flatten(view_b.environment))
    notes += [
        f"{key}: {text.describe(environment_a.get(key))} → {text.describe(environment_b.get(key))}"
        for key in dict.fromkeys([*environment_a, *environment_b])
        if environment_a.get(key) != environment_b.get(key) and key.split(".")[-1] not in PER_RUN_KEYS
    ]
    paired = {row.key for row, _ in pairs}
    for view, name in ((view_a, names[0]), (view_b, names[1])):
        alone = [row.key for row in view.backends if row.key not in paired]
        if alone:
            notes.append(f"Only in {name}: {', '.join(alone)}.")
    if not pairs:
        notes.append("The two files have no backend in common.")
    return notes
