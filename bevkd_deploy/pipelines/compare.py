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
    names = (str(a), str(b)) if a.name == b.name else (a.name, b.name)
    print_comparison(first, second, console, names)
