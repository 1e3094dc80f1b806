"""`bevkd benchmark`: latency, accuracy, parity and gates of everything a run can run, on the same frames."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.benchmark.gates import evaluate_gates, gate_error
from bevkd_deploy.benchmark.latency import END_TO_END, LatencySamples, SensorFrame, measure_latency, save_samples
from bevkd_deploy.benchmark.memory import artefact_peak_rss_mb
from bevkd_deploy.benchmark.parity import compare_outputs, worst
from bevkd_deploy.benchmark.result import BackendResult, Bench, write_bench
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json, sha256_file, write_json, write_text
from bevkd_deploy.contracts.requests import BenchmarkRequest
from bevkd_deploy.contracts.sidecar import ParityRow, load_sidecar
from bevkd_deploy.data.events import DropLog
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.pipelines.accuracy import accuracy_of, detect, ground_truth, score, sensors_of, spread, submission_of
from bevkd_deploy.pipelines.backends import Contender, artefact_contenders, infers_of, resolve_engine, torch_contenders
from bevkd_deploy.pipelines.datasets import data_digest, prepare_data, read_split
from bevkd_deploy.pipelines.frame_files import write_frame_files
from bevkd_deploy.pipelines.progress import bar
from bevkd_deploy.pipelines.run_log import LoggedConsole
from bevkd_deploy.pipelines.runs import Run, latest_run, open_run
from bevkd_deploy.pipelines.show import picture_samples
from bevkd_deploy.pipelines.teacher import obtain_teacher
from bevkd_deploy.report.console import print_benchmark, print_comparison
from bevkd_deploy.report.html import collect_inputs, write_html
from bevkd_deploy.report.junit import write_junit
from bevkd_deploy.report.markdown import render_markdown, summary_markdown
from bevkd_deploy.runtime.detections import Detections

Found = dict[str, dict[str, Detections]]


def benchmark(request: BenchmarkRequest, console: Console, results: Console) -> Bench:
    """Measure a run, write its benchmark folder, print the tables, and raise what its gates come to.

    Talk goes to `console`, the tables (or the JSON that `--json -` asks for) to `results`.
    """
    run = _run_of(request)
    console.print(f"run {run.path}{'' if request.run else ' (the latest)'}")
    console = LoggedConsole(console, run.path / "log.txt")
    bench = benchmark_run(run, request, console)
    _write_copies(run, bench, request)
    result = bench.model_dump(mode="json", by_alias=True)
    if str(request.json) == "-":
        results.print_json(data=result)
    tables = console if str(request.json) == "-" else results  # a script that reads JSON gets nothing but JSON
    print_benchmark(result, tables)
    if request.baseline:
        print_comparison(read_json(request.baseline, "baseline"), result, tables, ("baseline", "this run"))
    folder = run.path / "benchmark"
    console.print(f"report {folder / 'report.html'} · pictures {run.path / 'pictures'}")
    plan = run.export_dir / "student.plan"
    if plan.exists():
        console.print(f"plan {run.export_dir / plan.resolve().name}")
    console.print(f"Next: bevkd show {run.path}, or copy {run.export_dir} to the device and benchmark there")
    error = gate_error(bench.gates)
    if error:
        raise error
    return bench


def benchmark_run(run: Run, request: BenchmarkRequest, console: Console) -> Bench:
    """The benchmark stage inside a run."""
    recipe = run.loaded.recipe
    start = time.monotonic()
    environment = collect_environment()
    engine = resolve_engine(request.engine, run) if request.engine else None
    artefacts = artefact_contenders(run, engine, environment, console)  # first: an engine that cannot run ends here
    _require_own_student(run, artefacts)
    root = prepare_data(recipe, console)
    teacher = obtain_teacher(run.loaded, root, console)
    contenders = [*torch_contenders(run, teacher, environment), *artefacts]
    running = [row for row in contenders if row.infer is not None]
    samples = read_split(recipe, root, "val", console)

    title = "detecting on the validation frames with every backend"
    found = detect(samples, infers_of(running), console, title)
    truth = ground_truth(samples)
    summaries = {key: score(submission_of(samples, frames), truth) for key, frames in found.items()}
    for key, summary in summaries.items():
        # Teacher and student in PyTorch have theirs from the distillation stage.
        if not key.startswith(("teacher", "student")):
            write_json(run.path / "eval" / f"{key}.json", summary)
    latencies = _time_all(run, running, samples, console)
    rows = tuple(_row(row, latencies, summaries) for row in contenders)
    draft = Bench(
        environment=environment,
        frames=min(recipe.benchmark.frames, len(samples)),
        boundary=END_TO_END,
        backends=rows,
        parity=tuple(_parity(running, samples, found)),
    )
    gates = evaluate_gates(recipe.gates, draft, latencies, request.require)
    bench = draft.model_copy(update={"gates": gates})
    folder = run.path / "benchmark"
    written = [write_bench(folder / "bench.json", bench), save_samples(folder / "samples.npz", latencies)]
    _draw(run, samples, found, artefacts[0], console)
    written += _write_reports(run, bench)
    run.record_stage("benchmark", time.monotonic() - start, {"data": data_digest(recipe, root)}, written)
    return bench


def _run_of(request: BenchmarkRequest) -> Run:
    """The run that is named, or that the engine lies in, or the latest."""
    if request.run:
        return open_run(request.run)
    if request.engine and request.engine.is_file():
        parent = request.engine.absolute().parent.parent
        if (parent / "manifest.json").is_file():
            return open_run(parent)
    return latest_run()


def _require_own_student(run: Run, artefacts: list[Contender]) -> None:
    """Refuse artefacts of other weights: parity and accuracy would be those of another student."""
    run.require_student()
    digest = sha256_file(run.student_weights)
    for row in artefacts:
        assert row.path is not None
        made_from = load_sidecar(row.path).checkpoint_sha256
        if made_from != digest:
            raise ArtifactError(
                f"{row.path} was exported from other weights ({made_from[:12]}) than {run.student_weights} "
                f"({digest[:12]}): it is stale. Export again: bevkd export --run {run.path} --trt {row.precision}"
            )


def _parity(running: list[Contender], samples: list[Sample], found: Found) -> list[ParityRow]:
    """Every artefact against the student in PyTorch, worst frame of each output."""
    rows: list[ParityRow] = []
    for row in [row for row in running if row.path is not None]:
        frames = [
            compare_outputs(
                _arrays(found["student-torch-fp32"][sample.token]),
                _arrays(found[row.key][sample.token]),
                row.precision,
                "student-torch",
                row.name,
            )
            for sample in samples
        ]
        rows += worst([output for frame in frames for output in frame])
    return rows


def _arrays(detections: Detections) -> dict[str, Any]:
    return {"boxes": detections.boxes, "scores": detections.scores, "labels": detections.labels}


def _time_all(run: Run, running: list[Contender], samples: list[Sample], console: Console) -> dict[str, LatencySamples]:
    settings = run.loaded.recipe.benchmark
    cameras = run.loaded.recipe.data.cameras
    # Frames spread over the split: point counts, and with them the cost of a frame, differ from scene to scene.
    chosen = spread(samples, settings.frames)
    drops = DropLog()  # detection, on all of these frames, has reported the same
    frames = [SensorFrame(*sensors_of(sample, cameras, drops), sample.calibration) for sample in chosen]
    while len(frames) < settings.frames and len(samples) < settings.frames:
        frames.append(frames[len(frames) % len(samples)])  # a split of a few frames is gone through again
    timed = {row.key: row.timed for row in running if row.timed is not None}
    with bar(console, "timing", settings.rounds * len(timed)) as progress:
        return measure_latency(
            timed, frames, settings.rounds, settings.warmup_seconds, lambda name, *_: progress.advance(name)
        )


def _row(row: Contender, latencies: dict[str, LatencySamples], summaries: dict[str, dict[str, Any]]) -> BackendResult:
    measured: dict[str, Any] = {}
    if row.infer is not None:
        measured = {
            "latency_ms": latencies[row.key].summary(),
            "stages_ms": latencies[row.key].stage_medians_ms(),
            "accuracy": accuracy_of(summaries[row.key]),
        }
        if row.path is not None:
            measured["memory_mb"] = artefact_peak_rss_mb(row.path)
    return BackendResult(
        name=row.name, precision=row.precision, device=row.device, reason=row.reason, **row.fields, **measured
    )


def _draw(run: Run, samples: list[Sample], found: Found, engine: Contender, console: Console) -> None:
    chosen = picture_samples(samples, run.loaded.recipe.benchmark.pictures)
    if not chosen:
        return
    names = {"teacher": "teacher-fp32", "student": engine.key}
    actors = {actor: found[name] for actor, name in names.items() if name in found}  # a teacher may not run here
    with bar(console, "drawing pictures", 1):
        write_frame_files(chosen, run.loaded.recipe.student_spec(), actors, run.path / "pictures")


def _write_reports(run: Run, bench: Bench) -> list[Path]:
    folder = run.path / "benchmark"
    result = bench.model_dump(mode="json", by_alias=True)
    commands = (f"bevkd benchmark --run {run.path} --engine student.onnx", f"bevkd show {run.path}")
    return [
        write_junit(result, folder / "gates.xml"),
        write_text(folder / "report.md", render_markdown(result)),
        write_html(collect_inputs(run.path, commands), folder / "report.html"),
    ]


def _write_copies(run: Run, bench: Bench, request: BenchmarkRequest) -> None:
    """The files that the command line asks for beside the run's own."""
    folder = run.path / "benchmark"
    result = bench.model_dump(mode="json", by_alias=True)
    if request.json and str(request.json) != "-":
        write_json(request.json, result)
    if request.junit:
        write_junit(result, request.junit)
    if request.html:
        write_text(request.html, (folder / "report.html").read_text(encoding="utf-8"))
    if request.summary:
        with request.summary.open("a", encoding="utf-8") as handle:
            handle.write(summary_markdown(result) + "\n")
