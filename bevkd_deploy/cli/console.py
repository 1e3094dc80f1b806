"""The two consoles of the command line: talk goes to stderr, results to stdout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Output:
    """Where a command writes, as the global options ask."""

    quiet: bool = False

    @property
    def talk(self) -> Console:
        """Progress and remarks: stderr, silent with --quiet."""
        return _console(stderr=True, quiet=self.quiet)

    @property
    def results(self) -> Console:
        """What a script reads: stdout."""
        return _console(stderr=False)


def output_of(context: typer.Context) -> Output:
    """Output settings that the global options left in the context."""
    return context.find_object(Output) or Output()


def _console(*, stderr: bool, quiet: bool = False) -> Console:
    from rich.console import Console

    # A CI log is no terminal even where one is faked, and lines folded at 80 columns cannot be searched.
    in_ci = bool(os.environ.get("CI"))
    console = Console(stderr=stderr, quiet=quiet, highlight=False, force_terminal=False if in_ci else None)
    if not console.is_terminal:
        return Console(
            stderr=stderr, quiet=quiet, highlight=False, force_terminal=False, soft_wrap=True, width=_PLAIN_WIDTH
        )
    return console


_PLAIN_WIDTH = 160
