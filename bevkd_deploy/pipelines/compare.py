"""`bevkd compare`: what changed between two benchmark results."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bevkd_deploy.benchmark.result import load_bench
from bevkd_deploy.report.console import print_comparison


def compare(a: Path, b: Path, *, console: Console) -> None:
    """Print the differences of B against A.

    Raises:
        ArtifactError: one of the files is no benchmark result.
    """
    first, second = (load_bench(path).model_dump(mode="json", by_alias=True) for path in (a, b))
    console.print(f"A: {a}\nB: {b}", soft_wrap=True)
    print_comparison(first, second, console, ("A", "B"))
