"""An exported ONNX file to a plan with its sidecar. Needs no torch and no ONNX package: this is what a board runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.sidecar import (
    Library,
    Sidecar,
    load_sidecar,
    rebuild_command,
    sidecar_path,
    utc_now,
    write_sidecar,
)
from bevkd_deploy.contracts.target import Target
from bevkd_deploy.exporting.tensorrt_build import BuildReport, Progress, build_plan


@dataclass(frozen=True)
class Plan:
    """A plan on disk."""

    path: Path
    sidecar: Sidecar
    report: BuildReport


def build_from_onnx(onnx_path: Path | str, target: Target, progress: Progress | None = None) -> Plan:
    """Build `student.<precision>.<target>.plan` beside an exported `student.<precision>.onnx`.

    Args:
        onnx_path: exported ONNX with its sidecar; a link (`student.onnx`) is followed.
        target: device to build for.
        progress: see `build_plan`.

    Raises:
        ArtifactError: the ONNX file does not match its sidecar.
        CannotRunHere: this machine cannot build for the target; says where and how to build.
        ExportError: the library refuses the graph.
    """
    source = load_sidecar(onnx_path)
    if source.kind != "onnx":
        raise ArtifactError(f"{Path(onnx_path).name} is a plan; plans are built from the ONNX file of the same export")
    onnx_path = Path(onnx_path).resolve()
    plan_path = onnx_path.with_name(f"{onnx_path.stem}.{target.name}.plan")
    try:
        report = build_plan(onnx_path, plan_path, target, progress)
    except CannotRunHere as error:
        wanted = source.model_copy(update={"kind": "plan", "target": target.name})
        raise CannotRunHere(
            f"{error}. What a plan is made from is written: {onnx_path.name} and {sidecar_path(onnx_path).name}. Copy "
            f"the run to the device and build there: `{rebuild_command(wanted)}`"
        ) from error
    sidecar = source.model_copy(
        update={
            "kind": "plan",
            "file": plan_path.name,
            "sha256": sha256_file(plan_path),
            "target": target.name,
            "sm": report.sm,
            "library": Library(name=report.library, version=report.version),
            "build_seconds": round(report.build_seconds, 3),
            "created": utc_now(),
        }
    )
    write_sidecar(plan_path, sidecar)
    return Plan(plan_path, sidecar, report)


def remove_stale_plans(onnx_path: Path) -> list[Path]:
    """Delete the plans beside an ONNX file that were built from an earlier version of it.

    Returns:
        The deleted plans.
    """
    current = sha256_file(onnx_path)
    stale = []
    for plan in sorted(onnx_path.parent.glob(f"{onnx_path.stem}.*.plan")):
        try:
            fresh = load_sidecar(plan).onnx_sha256 == current
        except ArtifactError:
            fresh = False  # without a matching sidecar nothing will ever load it
        if not fresh:
            plan.unlink()
            sidecar_path(plan).unlink(missing_ok=True)
            stale.append(plan)
    return stale
