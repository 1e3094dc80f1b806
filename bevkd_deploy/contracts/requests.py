"""What the export and benchmark stages are asked to do, checked once for choices that exclude each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bevkd_deploy.contracts.errors import UsageError

#: Engine precisions of this version.
PRECISIONS: tuple[str, ...] = ("fp32", "fp16")

#: Precisions that the recipe format and the command line name for later versions.
_PLANNED_PRECISIONS: tuple[str, ...] = ("bf16", "int8", "fp8")


@dataclass(frozen=True)
class ExportRequest:
    """One call of the export stage.

    Attributes:
        run: run directory with the student to export; None takes the latest run.
        recipe: with `untrained`, the recipe whose student is built with random weights; a path or a shipped name.
        untrained: export a student that was never trained, to check a budget before training.
        run_dir: with `untrained`, the run directory to create; None takes runs/<recipe>/<time>.
        trt: precision of the TensorRT plan, or None for no plan.
        target: name of a device in export/targets; None takes the recipe's.
        onnx_only: write the ONNX files and stop.

    Raises:
        UsageError: two of them contradict each other, or the precision is not available.
    """

    run: Path | None = None
    recipe: Path | None = None
    untrained: bool = False
    run_dir: Path | None = None
    trt: str | None = None
    target: str | None = None
    onnx_only: bool = False

    def __post_init__(self) -> None:
        if self.trt is not None:
            _check_precision(self.trt)
        if self.untrained and self.recipe is None:
            raise UsageError("--untrained needs --recipe RECIPE, whose student is built")
        if not self.untrained and self.recipe is not None:
            raise UsageError("--recipe goes with --untrained; a trained student is exported from its run: --run DIR")
        if not self.untrained and self.run_dir is not None:
            raise UsageError("--run-dir goes with --untrained; name the run to export with --run DIR")
        if self.untrained and self.run is not None:
            raise UsageError("--run and --untrained exclude each other: one exports a run, the other creates one")
        if self.onnx_only and self.trt is not None:
            raise UsageError("--onnx-only and --trt exclude each other: one stops before the plan, one asks for it")


@dataclass(frozen=True)
class BenchmarkRequest:
    """One call of the benchmark stage.

    Attributes:
        engine: .plan or .onnx as typed; a name that is no file is looked up in the run's export folder.
        run: run directory; None takes the run that the engine lies in, or the latest.
        json: where to copy bench.json; `-` is standard output.
        junit: where to copy the JUnit file, one test case per gate.
        summary: Markdown file to append the report to.
        html: where to copy the HTML report.
        baseline: an earlier bench.json to compare with.
        require: names of gates that must pass; a skipped one fails.

    Raises:
        UsageError: the engine is neither .plan nor .onnx, or the baseline is no file.
    """

    engine: Path | None = None
    run: Path | None = None
    json: Path | None = None
    junit: Path | None = None
    summary: Path | None = None
    html: Path | None = None
    baseline: Path | None = None
    require: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.engine is not None and self.engine.suffix not in (".plan", ".onnx"):
            raise UsageError(f"--engine takes a .plan or an .onnx file, got {self.engine}")
        if self.baseline is not None and not self.baseline.is_file():
            raise UsageError(f"--baseline: no such file: {self.baseline}")


def _check_precision(precision: str) -> None:
    if precision in PRECISIONS:
        return
    available = " or ".join(PRECISIONS)
    if precision in _PLANNED_PRECISIONS:
        raise UsageError(f"--trt {precision} is not available in this version; use {available}")
    raise UsageError(f"--trt {precision} is not a precision; use {available}")
