"""Everything of a run that can detect: teacher and student in PyTorch, the exported artefacts in their runtimes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bevkd_deploy.benchmark.environment import device_label
from bevkd_deploy.benchmark.latency import Backend, SensorFrame, detector_backend
from bevkd_deploy.benchmark.result import BackendName, artefact_fields, backend_key
from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.contracts.sidecar import load_sidecar
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.pipelines.accuracy import Infer
from bevkd_deploy.pipelines.runs import Run
from bevkd_deploy.pipelines.teacher import Teacher
from bevkd_deploy.pipelines.teacher_network import AbsentNetwork
from bevkd_deploy.pipelines.torch_detector import TorchDetector
from bevkd_deploy.runtime.detector import Detector


@dataclass
class Contender:
    """One row of the benchmark.

    Attributes:
        name: of the row.
        precision: of the row.
        device: where it runs.
        spec: graph inputs it takes.
        infer: graph inputs -> detections; None where it cannot run here.
        timed: one frame from sensor arrays to boxes, with its stages.
        path: artefact, None for PyTorch.
        reason: why it cannot run here.
    """

    name: BackendName
    precision: str
    device: str
    spec: GraphSpec | SensorSpec
    infer: Infer | None = None
    timed: Backend[SensorFrame] | None = None
    path: Path | None = None
    reason: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique name."""
        return backend_key(self.name, self.precision)


def infers_of(contenders: list[Contender]) -> dict[str, tuple[GraphSpec | SensorSpec, Infer]]:
    """What `accuracy.detect` takes, for the rows that run here."""
    return {row.key: (row.spec, row.infer) for row in contenders if row.infer is not None}


def torch_contenders(run: Run, teacher: Teacher, environment: dict[str, Any]) -> list[Contender]:
    """Teacher and student in PyTorch on the CPU."""
    recipe = run.loaded.recipe
    student = build_detector(recipe.student.model, recipe.student_spec(), recipe.seed)
    load_detector(run.student_weights, student, recipe.student.model)
    device = device_label("cpu", environment)
    contenders = []
    names: tuple[tuple[BackendName, DetectionNetwork, Path], ...] = (
        ("teacher", teacher.detector, teacher.weights),
        ("student-torch", student, run.student_weights),
    )
    for name, network, weights in names:
        fields = {"size_mb": weights.stat().st_size / 1e6}
        if isinstance(network, AbsentNetwork):
            contenders.append(Contender(name, "fp32", device, network.spec, reason=network.why, fields=fields))
            continue
        wrapped = TorchDetector(network)
        contenders.append(Contender(name, "fp32", device, network.spec, wrapped.infer, wrapped.timed, fields=fields))
    return contenders


def artefact_contender(path: Path, environment: dict[str, Any], *, must_run: bool) -> Contender:
    """An exported ONNX file or plan.

    Raises:
        CannotRunHere: it does not run on this machine and `must_run` asks for it.
        ArtifactError: it does not match its sidecar.
    """
    sidecar = load_sidecar(path)
    fields = artefact_fields(path)
    name: BackendName = "onnxruntime" if sidecar.kind == "onnx" else _plan_name(sidecar.library.name)
    try:
        detector = Detector.load(path)
    except CannotRunHere as error:
        if must_run:
            raise
        row = Contender(name, sidecar.precision, str(sidecar.target), sidecar.graph, path=path, fields=fields)
        row.reason = str(error)
        return row
    return Contender(
        name,
        sidecar.precision,
        device_label(detector.engine.device, environment),
        sidecar.graph,
        detector.infer,
        detector_backend(detector),
        path,
        fields=fields,
    )


def artefact_contenders(
    run: Run, engine: Path | None, environment: dict[str, Any], console: Console
) -> list[Contender]:
    """The measured artefact first, then the run's other ones.

    Without a chosen engine, the plan is measured where it runs, else its ONNX twin, and the choice is said.
    """
    files = sorted(path for path in run.export_dir.glob("student.*.*") if path.suffix in (".onnx", ".plan"))
    # Plans of one precision for several targets would share a row: the newest one stands for them.
    newest = (run.export_dir / "student.plan").resolve()
    files.sort(key=lambda path: path.resolve() != newest)
    if not files and engine is None:
        raise ArtifactError(f"{run.path} has no exported student; run: bevkd export --run {run.path} --trt fp16")
    rows: dict[str, Contender] = {}
    if engine is not None:
        chosen = artefact_contender(engine, environment, must_run=True)
        console.print(f"  engine {engine.resolve().name}")
        rows[chosen.key] = chosen
        files = [path for path in files if path.resolve() != engine.resolve()]  # loaded already
    for row in [artefact_contender(path, environment, must_run=False) for path in files]:
        rows.setdefault(row.key, row)
    if engine is None:
        running = [row for row in rows.values() if row.infer is not None]
        if not running:
            raise CannotRunHere("; ".join(str(row.reason) for row in rows.values()))
        chosen = next((row for row in running if row.path == _default_engine(run)), running[0])
        console.print(f"  engine {chosen.path.name if chosen.path else chosen.key}, the newest that runs here")
    return [chosen, *[row for row in rows.values() if row is not chosen]]


def resolve_engine(engine: Path, run: Run) -> Path:
    """An engine as given, or looked up in the run's export folder.

    Raises:
        ArtifactError: neither exists; lists what is there.
    """
    for path in (engine, run.export_dir / engine):
        if path.is_file():
            return path
    found = sorted(path.name for path in run.export_dir.glob("student*") if path.suffix in (".onnx", ".plan"))
    raise ArtifactError(
        f"engine {engine} is no file here, nor in {run.export_dir} (which holds {', '.join(found) or 'nothing'}); "
        "make it with bevkd export"
    )


def _default_engine(run: Run) -> Path:
    link = run.export_dir / "student.plan"
    newest = link if link.exists() else run.export_dir / "student.onnx"
    return run.export_dir / newest.resolve().name


def _plan_name(library: str) -> BackendName:
    return "tensorrt" if library == "tensorrt" else "tensorrt_rtx"
