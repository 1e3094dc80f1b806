"""`bevkd doctor`: what this machine can and cannot do, and the fix."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bevkd_deploy.cli.console import output_of

if TYPE_CHECKING:
    from rich.table import Table

    from bevkd_deploy.pipelines.doctor import Check

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Check Python, every dependency, GPU, engine libraries, data roots and disk: ok, warn or missing, with the fix.

    Example: bevkd doctor
    """
    from bevkd_deploy.pipelines.doctor import diagnose

    checks = diagnose()
    if as_json:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2))
        return
    output = output_of(context)
    output.results.print(_table(checks))
    counts = ", ".join(f"{sum(check.status == status for check in checks)} {status}" for status in _COLOURS)
    output.talk.print(f"{counts}. Next: bevkd recipes", markup=False)


def _table(checks: list[Check]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("check", "status", "found", "fix"):
        table.add_column(column, no_wrap=column != "fix")
    for check in checks:
        table.add_row(check.name, Text(check.status, style=_COLOURS[check.status]), Text(check.found), Text(check.fix))
    return table
