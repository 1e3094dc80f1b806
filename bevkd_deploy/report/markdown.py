"""`bench.json` → Markdown: the full report, the README's table and the summary of a CI job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import write_text
from bevkd_deploy.report import tables, text
from bevkd_deploy.report.bench_view import Bench, parse_bench
from bevkd_deploy.report.tables import Table

RESULTS_BEGIN = "<!-- results:begin -->"
RESULTS_END = "<!-- results:end -->"


def render_markdown(bench: Mapping[str, Any]) -> str:
    """The whole report of one benchmark.

    Args:
        bench: content of a `bench.json`.

    Raises:
        ArtifactError: `bench` does not follow the schema.
    """
    view = parse_bench(bench)
    verdict = tables.verdict(view)
    parts = [
        "# Benchmark",
        f"**Gates: {verdict.word}.** {_escape(verdict.sentence)}",
        _origin(view),
        _boundary(view),
    ]
    for table in (
        tables.results_table(view),
        tables.gates_table(view),
        tables.per_class_table(view),
        tables.parity_table(view),
        tables.stages_table(view),
        tables.environment_table(view),
    ):
        if table.rows:
            parts += [f"## {table.title}", markdown_table(table)]
    hashes = [f"- `{row.engine}`: sha256 `{row.engine_sha256}`" for row in view.backends if row.engine_sha256]
    if hashes:
        parts += ["## Measured files", "\n".join(hashes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme_table(bench: Mapping[str, Any]) -> str:
    """Results table and its origin (device, date, commit, boundary), between the README's markers."""
    view = parse_bench(bench)
    return "\n".join(
        [RESULTS_BEGIN, "", markdown_table(tables.results_table(view)), "", _origin(view), "", _boundary(view), "",
         RESULTS_END]
    )  # fmt: skip


def update_readme(readme_path: Path | str, bench: Mapping[str, Any]) -> Path:
    """Replace what stands between the two markers of a README.

    Raises:
        ArtifactError: the README is missing, or does not hold each marker exactly once and in order.
    """
    path = Path(readme_path)
    if not path.is_file():
        raise ArtifactError(f"README not found: {path}")
    content = path.read_text(encoding="utf-8")
    counts = content.count(RESULTS_BEGIN), content.count(RESULTS_END)
    begin, end = content.find(RESULTS_BEGIN), content.find(RESULTS_END)
    if counts != (1, 1) or end < begin:
        raise ArtifactError(
            f"{path} needs the line '{RESULTS_BEGIN}' and, below it, the line '{RESULTS_END}', once each; "
            f"got {counts[0]} and {counts[1]}"
        )
    return write_text(path, content[:begin] + readme_table(bench) + content[end + len(RESULTS_END) :])


def summary_markdown(bench: Mapping[str, Any]) -> str:
    """A short report for a CI job's summary page: verdict, gates and results open, the rest folded."""
    view = parse_bench(bench)
    verdict = tables.verdict(view)
    parts = [f"### bevkd benchmark: gates {verdict.word}", _escape(verdict.sentence)]
    if view.gates:
        parts.append(markdown_table(tables.gates_table(view)))
    parts += [markdown_table(tables.results_table(view)), _origin(view), _boundary(view)]
    for table in (tables.parity_table(view), tables.per_class_table(view), tables.environment_table(view)):
        if table.rows:
            parts.append(f"<details><summary>{table.title}</summary>\n\n{markdown_table(table)}\n\n</details>")
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    """One table with its notes."""
    lines = [
        "| " + " | ".join(_escape(column.name) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|",
    ]
    for row in table.rows:
        cells = [f"**{_escape(cell.text)}**" if cell.tone in ("bad", "warn") else _escape(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{_escape(note)}" for note in table.notes)])


def _origin(view: Bench) -> str:
    parts = [f"Measured on {view.device}"]
    parts += [view.date] if view.date else []
    parts += [f"commit {view.code}"] if view.code else []
    parts += [text.plural(view.frames, "frame")] if view.frames else []
    return ", ".join(parts) + "."


def _boundary(view: Bench) -> str:
    return f"Latency boundary: {_escape(view.boundary)}" if view.boundary else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
