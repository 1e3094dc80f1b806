"""Student to artefacts: typed ONNX files, plans, their sidecars, and proof that they compute what the student does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from bevkd_deploy.benchmark.parity import FP32_TOLERANCE, compare_outputs, worst
from bevkd_deploy.contracts.errors import ExportError, UsageError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.requests import PRECISIONS
from bevkd_deploy.contracts.sidecar import (
    UNTRAINED,
    Island,
    Library,
    ParityRow,
    Sidecar,
    sidecar_path,
    utc_now,
    write_sidecar,
)
from bevkd_deploy.contracts.target import Target
from bevkd_deploy.exporting.lint import check_portable
from bevkd_deploy.exporting.onnx_export import OPSET, reference_copy, save_model, trace
from bevkd_deploy.exporting.plan import Plan, build_from_onnx, remove_stale_plans
from bevkd_deploy.exporting.precision import precision_table, to_fp16_with_islands
from bevkd_deploy.exporting.probe import check_fp16_ranges, head_maps
from bevkd_deploy.models.detector import DeployedStudent
from bevkd_deploy.runtime.engine import open_engine

Feed = Mapping[str, NDArray[Any]]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Provenance:
    """Where a student comes from.

    Attributes:
        recipe: its name.
        recipe_sha256: hash of the resolved recipe.
        checkpoint_sha256: hash of the weights file, or "untrained".
        commit: of the code.
    """

    recipe: str
    recipe_sha256: str | None = None
    checkpoint_sha256: str = UNTRAINED
    commit: str | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        precisions: ONNX precisions; fp32 is always written first, the others are made from it.
        plans: precisions to build a plan for; empty stops at ONNX.
        target: device of the plans.
        keep_fp32: node-name patterns kept in FP32 beyond the built-in islands.
    """

    precisions: tuple[str, ...] = ("fp32", "fp16")
    plans: tuple[str, ...] = ()
    target: Target | None = None
    keep_fp32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted({*self.precisions, *self.plans} - set(PRECISIONS))
        if unknown:
            raise UsageError(f"precision {unknown[0]} cannot be exported; use {' or '.join(PRECISIONS)}")
        if self.plans and self.target is None:
            raise UsageError("a plan is built for a device: give a target")

    @property
    def onnx_precisions(self) -> tuple[str, ...]:
        """Precisions to write as ONNX: fp32, then the others as asked for, plans' included."""
        return tuple(dict.fromkeys(("fp32", *self.precisions, *self.plans)))


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        onnx: ONNX file of each precision.
        plans: plan of each precision.
        parity: rows of every ONNX file against the student in torch, worst of all feeds.
    """

    onnx: dict[str, Path] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    parity: tuple[ParityRow, ...] = ()


def export_student(
    student: DeployedStudent,
    spec: GraphSpec,
    out_dir: Path | str,
    options: ExportOptions,
    provenance: Provenance,
    feeds: Sequence[Feed],
    notify: Notify = lambda _: None,
) -> ExportResult:
    """Write `student.<precision>.onnx`, plans and sidecars, and prove each ONNX file against the student.

    `student.onnx` and `student.plan` (and their sidecars) become links to the newest plan and the ONNX file that it
    was built from. Plans of earlier weights are deleted. Everything that can be written is written before an error
    about the plan is raised.

    Args:
        student: the graph to export; it is not changed.
        spec: its contract.
        out_dir: the run's export folder.
        options: precisions, plans, target.
        provenance: what the sidecars record.
        feeds: graph inputs of real frames, at least one, for parity and FP16 ranges.
        notify: told in one line about each step.

    Raises:
        ExportError: the graph cannot be exported, overflows FP16, or differs from the student; numbers are given.
        OpNotPortable: the graph breaks the portable-op contract.
        CannotRunHere: the plan cannot be built on this machine.
    """
    if not feeds:
        raise UsageError("export needs the inputs of at least one frame, to compare the artefacts with the student")
    out = Path(out_dir)
    truth = _run_torch(student, spec, feeds)
    fp32 = trace(student, spec)
    result = ExportResult()
    rows: list[ParityRow] = []
    for precision in options.onnx_precisions:
        model, islands = (fp32, ()) if precision == "fp32" else to_fp16_with_islands(fp32, options.keep_fp32)
        check_portable(model)
        if precision == "fp16":
            check_fp16_ranges(fp32, model, feeds)
        draft = _Draft(model, islands, precision, spec, provenance)
        path, parity = _write_onnx(draft, out / f"student.{precision}.onnx", feeds, truth)
        result.onnx[precision] = path
        rows += parity
        notify(f"wrote {path.name} ({path.stat().st_size / 1e6:.1f} MB), {_summary(parity)}")
        for stale in remove_stale_plans(path):
            notify(f"removed {stale.name}: it was built from an earlier export")
    newest = options.plans[-1] if options.plans else options.onnx_precisions[-1]
    _link(out / "student.onnx", result.onnx[newest])
    _drop_dangling(out / "student.plan")
    for precision in options.plans:
        assert options.target is not None  # checked by ExportOptions
        plan = build_from_onnx(result.onnx[precision], options.target)
        result.plans[precision] = plan
        _link(out / "student.plan", plan.path)
        notify(
            f"built {plan.path.name} ({plan.path.stat().st_size / 1e6:.1f} MB) for SM {options.target.sm} with "
            f"{plan.report.library} {plan.report.version} in {plan.report.build_seconds:.1f} s"
        )
    return ExportResult(result.onnx, result.plans, tuple(rows))


@dataclass(frozen=True)
class _Draft:
    """A model that is to become an artefact."""

    model: onnx.ModelProto
    islands: tuple[Island, ...]
    precision: str
    spec: GraphSpec
    provenance: Provenance

    def sidecar(self, path: Path) -> Sidecar:
        """Sidecar of the model written at `path`, without parity."""
        digest = sha256_file(path)
        return Sidecar(
            kind="onnx",
            file=path.name,
            sha256=digest,
            onnx_sha256=digest,
            checkpoint_sha256=self.provenance.checkpoint_sha256,
            recipe=self.provenance.recipe,
            recipe_sha256=self.provenance.recipe_sha256,
            precision=self.precision,
            precision_table=precision_table(self.model),
            fp32_islands=self.islands,
            library=Library(name="onnx", version=f"opset {OPSET}"),
            graph=self.spec,
            inputs=self.spec.inputs(),
            outputs=self.spec.outputs(),
            created=utc_now(),
            commit=self.provenance.commit,
        )


@dataclass(frozen=True)
class _Truth:
    """What the student computes for one feed: the graph's outputs, and the head's maps they are decoded from."""

    outputs: dict[str, NDArray[Any]]
    maps: dict[str, NDArray[Any]]


def _run_torch(student: DeployedStudent, spec: GraphSpec, feeds: Sequence[Feed]) -> list[_Truth]:
    eager = reference_copy(student)
    names = [tensor.name for tensor in spec.outputs()]
    results = []
    for feed in feeds:
        inputs = [torch.from_numpy(np.ascontiguousarray(feed[tensor.name]))[None] for tensor in spec.inputs()]
        with torch.no_grad():
            maps = eager.detector(*inputs)
            outputs = [tensor[0] for tensor in eager.detector.decode(maps)]
        results.append(
            _Truth(
                {name: tensor.numpy() for name, tensor in zip(names, outputs, strict=True)},
                {name: tensor.numpy() for name, tensor in maps.items()},
            )
        )
    return results


def _write_onnx(
    draft: _Draft, path: Path, feeds: Sequence[Feed], truth: Sequence[_Truth]
) -> tuple[Path, list[ParityRow]]:
    """Write the file, compare it with the student, and only then give it the sidecar that makes it usable."""
    sidecar_path(path).unlink(missing_ok=True)
    save_model(draft.model, path)
    sidecar = draft.sidecar(path)
    names = {"tier": draft.precision, "candidate_name": f"onnx-{draft.precision}"}
    rows: list[ParityRow] = []
    with open_engine(path, sidecar) as engine:
        for feed, expected in zip(feeds, truth, strict=True):
            rows += compare_outputs(expected.outputs, engine.run(feed), **names)
    for expected, maps in zip(truth, head_maps(draft.model, truth[0].maps.keys(), feeds), strict=True):
        rows += compare_outputs(expected.maps, maps, **names)
    parity = worst(rows)
    _require_parity(parity, path)
    write_sidecar(path, sidecar.model_copy(update={"parity": tuple(parity)}))
    return path, parity


def _require_parity(rows: Sequence[ParityRow], path: Path) -> None:
    failed = [
        f"{row.output}: largest difference {row.max_abs:.3g}, relative L2 {row.rel_l2:.3g}, "
        f"{row.nonfinite} non-finite, {row.unmatched} unmatched"
        for row in rows
        if row.result == "fail"
    ]
    if failed:
        limit = f" (limit {FP32_TOLERANCE:g} relative)" if rows[0].tier == "fp32" else ""
        raise ExportError(
            f"{path.name} does not compute what the student does{limit}: {'; '.join(failed)}. The file is left for "
            "inspection, without the sidecar that would make it usable"
        )


def _summary(rows: Sequence[ParityRow]) -> str:
    return "relative L2 to torch: " + ", ".join(f"{row.output} {row.rel_l2:.1e}" for row in rows)


def _link(link: Path, artefact: Path) -> None:
    """Point `link` and its sidecar at an artefact of the same folder, replacing them in one step each."""
    for source, destination in ((link, artefact), (sidecar_path(link), sidecar_path(artefact))):
        temporary = source.with_name(f".{source.name}.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(destination.name)
        os.replace(temporary, source)


def _drop_dangling(link: Path) -> None:
    """Remove a link, and its sidecar's, whose plan is gone."""
    if link.is_symlink() and not link.exists():
        link.unlink()
        sidecar_path(link).unlink(missing_ok=True)
