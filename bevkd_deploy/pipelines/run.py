"""`bevkd run`: the whole chain of a recipe, reusing what is already there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bevkd_deploy.contracts.errors import CannotRunHere, UsageError
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.requests import BenchmarkRequest, ExportRequest
from bevkd_deploy.pipelines.benchmark import benchmark
from bevkd_deploy.pipelines.distill import distill_into
from bevkd_deploy.pipelines.export import export_run
from bevkd_deploy.pipelines.run_log import LoggedConsole
from bevkd_deploy.pipelines.runs import Run, start_or_resume


def run(
    recipe_path: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    resume: bool,
    console: Console,
    results: Console,
) -> Path:
    """Data, teacher, distillation, export and benchmark; returns the run directory.

    With `resume`, a stage whose recorded outputs are all intact is not run again. Datasets and trained teachers are
    shared between runs by the hash of what they were made from.

    Raises:
        UsageError: started by torchrun; its processes can share a distillation, not an export or a measurement.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "bevkd run is for one process: distil with torchrun, then go on with bevkd run RECIPE --resume"
        )
    loaded = load_recipe(recipe_path, overrides)
    this = start_or_resume(loaded, run_dir, resume)
    console = LoggedConsole(console, this.path / "log.txt")
    console.print(f"run {this.path}")
    console.print("1/3 distil")
    if resume and this.stage("distill"):
        console.print("  reused: its outputs are what the manifest says")
    else:
        distill_into(this, resume and (this.path / "state" / "state.pt").is_file(), console)
    console.print("2/3 export")
    if resume and this.stage("export"):
        console.print("  reused: its outputs are what the manifest says")
    else:
        _export(this, console)
    console.print("3/3 benchmark")
    benchmark(BenchmarkRequest(run=this.path), console, results)
    return this.path


def _export(this: Run, console: Console) -> None:
    try:
        export_run(this, ExportRequest(run=this.path), console)
    except CannotRunHere as error:
        # ONNX files are written before the plan is tried, and everything after this stage runs on them.
        console.print(f"  no plan: {error}")
