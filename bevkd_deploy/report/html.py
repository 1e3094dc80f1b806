"""A run's results as one HTML file that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json, write_text
from bevkd_deploy.report import plots, tables, text
from bevkd_deploy.report.bench_view import Bench, parse_bench
from bevkd_deploy.report.provenance import provenance
from bevkd_deploy.report.training_log import Curves, read_curves

if TYPE_CHECKING:
    from jinja2 import Template

#: End of the name of an array with whole latencies; the others hold stages.
TOTAL = "/total"

#: Kinds of picture by the end of their file name.
CAPTIONS = {
    ".bev.png": "Bird's-eye view of frame {token}: LiDAR points, with the boxes of truth, teacher and student",
    ".cameras.png": "Cameras of frame {token}, with the boxes of truth and student",
}


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of. Only `bench` is needed; a section without input is left out.

    Attributes:
        bench: content of `bench.json`.
        title: heading of the page.
        samples: milliseconds of every sample by backend (`samples.npz`).
        evaluations: content of `eval/*.json` by name (the devkit's metrics_summary keys).
        manifest: content of `manifest.json`.
        curves: losses of the training stages.
        pictures: PNG files.
        next_commands: what to run next.
    """

    bench: Mapping[str, Any]
    title: str = "bevkd benchmark"
    samples: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    curves: tuple[Curves, ...] = ()
    pictures: tuple[Path, ...] = ()
    next_commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """One headline number."""

    value: str
    name: str
    detail: str


def collect_inputs(run_dir: Path | str, next_commands: tuple[str, ...] = ()) -> ReportInputs:
    """Read everything a report can use from a run directory.

    Raises:
        ArtifactError: `benchmark/bench.json` is missing, or one of the files is broken.
    """
    run_dir = Path(run_dir)
    files = sorted((run_dir / "eval").glob("*.json"), key=lambda path: (path.stem != "teacher", path.stem))
    evaluations = {path.stem: read_json(path, "evaluation") for path in files}
    samples, events, manifest = (run_dir / name for name in ("benchmark/samples.npz", "events.jsonl", "manifest.json"))
    return ReportInputs(
        bench=read_json(run_dir / "benchmark" / "bench.json", "benchmark result"),
        title=f"{run_dir.resolve().parent.name} / {run_dir.resolve().name}",
        samples=read_samples(samples) if samples.is_file() else {},
        evaluations={name: metrics for name, metrics in evaluations.items() if "mean_ap" in metrics},
        manifest=read_json(manifest, "manifest") if manifest.is_file() else None,
        curves=tuple(read_curves(events)) if events.is_file() else (),
        pictures=tuple(sorted((run_dir / "pictures").glob("*.png"))),
        next_commands=next_commands,
    )


def read_samples(path: Path | str) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of every sample by backend, from the `<backend>/total` arrays of a `samples.npz`.

    Raises:
        ArtifactError: the file is missing or not an archive of numeric arrays; pickled objects are refused.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            totals = [name for name in archive.files if name.endswith(TOTAL)]
            return {name.removesuffix(TOTAL): np.asarray(archive[name], np.float64).ravel() for name in totals}
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"latency samples {path} cannot be read: {error}") from error


def render_html(inputs: ReportInputs) -> str:
    """The page as text.

    Raises:
        ArtifactError: `inputs.bench` does not follow the schema.
    """
    view = parse_bench(inputs.bench)
    shown_tables = {
        "results": tables.results_table(view),
        "gates": tables.gates_table(view),
        "classes": tables.per_class_table(view),
        "evaluations": tables.evaluations_table(inputs.evaluations),
        "parity": tables.parity_table(view),
        "stages": tables.stages_table(view),
        "environment": tables.environment_table(view),
    }
    return page_template("report.html.j2").render(
        title=inputs.title,
        bench=view,
        verdict=tables.verdict(view),
        cards=_cards(view),
        frames=text.describe(view.frames),
        tables=shown_tables,
        latency_svg=plots.latency_plot(view, inputs.samples),
        classes_svg=plots.per_class_plot(view),
        training_svg=plots.training_plot(inputs.curves),
        pictures=[(_data_uri(path), _caption(path)) for path in inputs.pictures],
        provenance=provenance(view, inputs.manifest),
        next_commands=inputs.next_commands,
    )


def write_html(inputs: ReportInputs, path: Path | str) -> Path:
    """Write `render_html` to a file."""
    return write_text(path, render_html(inputs))


def page_template(name: str) -> Template:
    """A page of `templates`; whatever it is given is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bevkd_deploy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _cards(view: Bench) -> list[Card]:
    """Headline numbers of the engine, each with what it is compared with."""
    engine, teacher = view.engine, view.find("teacher")
    if engine is None:
        return []
    cards = []
    if engine.accuracy:
        kept = ""
        if teacher and teacher.accuracy and teacher.accuracy.mAP > 0:
            kept = f"{text.percent(engine.accuracy.mAP / teacher.accuracy.mAP)} of the teacher's"
            kept += f" {text.metric(teacher.accuracy.mAP)}"
        cards.append(Card(text.metric(engine.accuracy.mAP), "mAP", kept))
        cards.append(Card(text.metric(engine.accuracy.NDS), "NDS", _teacher_detail(view, "NDS")))
    if engine.latency_ms:
        factor = tables.speed_up(view, engine)
        detail = f"speed-up over the teacher: {factor}" if factor != text.ABSENT else ""
        cards.append(Card(f"{text.milliseconds(engine.latency_ms.p50)} ms", "latency, p50", detail))
    if engine.size_mb is not None:
        detail = f"teacher: {text.megabytes(teacher.size_mb)} MB" if teacher and teacher.size_mb else ""
        cards.append(Card(f"{text.megabytes(engine.size_mb)} MB", "engine file", detail))
    return cards


def _teacher_detail(view: Bench, metric: str) -> str:
    teacher = view.find("teacher")
    if teacher is None or teacher.accuracy is None:
        return ""
    return f"teacher: {text.metric(getattr(teacher.accuracy, metric))}"


def _data_uri(path: Path) -> str:
    if not path.is_file():
        raise ArtifactError(f"picture not found: {path}")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _caption(path: Path) -> str:
    for suffix, caption in CAPTIONS.items():
        if path.name.endswith(suffix):
            return caption.format(token=path.name.removesuffix(suffix))
    return path.stem
