"""The same tables on a terminal, printed through the console that the caller owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bevkd_deploy.report import tables
from bevkd_deploy.report.bench_view import parse_bench
from bevkd_deploy.report.compare import compare_benches
from bevkd_deploy.report.tables import Table, Tone

if TYPE_CHECKING:
    from rich.console import Console

#: Terminal width from which tables show every column.
WIDE = 145

STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "bold red", "warn": "yellow", "muted": "dim"}


def print_benchmark(bench: Mapping[str, Any], console: Console) -> None:
    """Results, gates and the verdict: the end of `bevkd benchmark`.

    Raises:
        ArtifactError: `bench` does not follow the schema.
    """
    view = parse_bench(bench)
    origin = " · ".join(part for part in (view.device, view.date, view.code) if part)
    console.print(origin, style="bold", markup=False, highlight=False)
    if view.boundary:
        console.print(f"latency boundary: {view.boundary}", markup=False, highlight=False)
    compact = console.width < WIDE
    print_table(tables.results_table(view, compact=compact), console)
    if view.gates:
        print_table(tables.gates_table(view, compact=compact), console)
    verdict = tables.verdict(view)
    console.print()
    line = f"gates {verdict.word}: {verdict.sentence}"
    console.print(line, style=STYLES[verdict.tone], markup=False, highlight=False)


def print_comparison(
    bench_a: Mapping[str, Any], bench_b: Mapping[str, Any], console: Console, names: tuple[str, str] = ("A", "B")
) -> None:
    """Differences of two benchmarks: the output of `bevkd compare`."""
    table = compare_benches(bench_a, bench_b, names)
    if table.rows:
        print_table(table, console)
        return
    for note in table.notes:
        console.print(note, markup=False, highlight=False)


def print_table(table: Table, console: Console) -> None:
    """Print one table with its notes."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    gap = 1 if console.width >= 100 else 0
    rich_table = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )
    last = len(table.columns) - 1
    for index, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        wraps = index == last and not column.numeric
        rich_table.add_column(Text(column.name), justify=justify, overflow="fold", no_wrap=not wraps)
    for row in table.rows:
        rich_table.add_row(*(Text(cell.text, style=STYLES[cell.tone]) for cell in row))
    console.print()
    console.print(rich_table)
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)
