"""bench.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bevkd_deploy.benchmark.result import (
    Accuracy,
    BackendResult,
    Bench,
    LatencySummary,
    artefact_fields,
    load_bench,
    write_bench,
)
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.sidecar import ParityRow
from bevkd_deploy.report.bench_view import load_bench as load_for_report

LATENCY = LatencySummary(n=6, mean=4.0, cv=0.1, min=3.0, p50=4.0, p90=5.0, p99=6.0, max=6.0)


def make_row(name: str = "teacher", precision: str = "fp32", **changes: Any) -> BackendResult:
    return BackendResult(**{"name": name, "precision": precision, "device": "Box (CPU)", **changes})


def make_bench(*rows: BackendResult, **changes: Any) -> Bench:
    fields = {"environment": {"device": "Box (CPU)"}, "frames": 3, "boundary": "end_to_end: arrays -> boxes"}
    return Bench(**{**fields, "backends": rows, **changes})


def full_bench() -> Bench:
    parity = ParityRow(
        reference="student-torch",
        candidate="onnxruntime",
        tier="fp16",
        output="boxes",
        max_abs=0.01,
        rel_l2=1e-3,
        cosine=0.999,
        nonfinite=0,
        result="pass",
    )
    accuracy = Accuracy(mAP=0.5, NDS=0.6, per_class={"car": 0.7, "bus": None})
    return make_bench(
        make_row(latency_ms=LATENCY, accuracy=accuracy),
        make_row("student-torch"),
        make_row(
            "onnxruntime",
            "fp16",
            engine="student.fp16.onnx",
            engine_sha256="0" * 64,
            size_mb=1.5,
            latency_ms=LATENCY,
            stages_ms={"resize": 1.0, "engine": 2.0},
            memory_mb=200.0,
        ),
        make_row("tensorrt_rtx", "fp16", engine="student.plan", engine_sha256="1" * 64, reason="no NVIDIA GPU"),
        parity=(parity,),
    )


def test_survives_the_file_under_the_contracts_keys(tmp_path: Path) -> None:
    path = write_bench(tmp_path / "bench.json", full_bench())
    assert load_bench(path) == full_bench()
    raw = json.loads(path.read_text())
    assert raw["schema"] == "bevkd.benchmark/1"
    assert {"environment", "frames", "boundary", "backends", "parity", "gates"} <= set(raw)
    row = raw["backends"][2]
    assert {"name", "precision", "engine", "engine_sha256", "latency_ms", "stages_ms", "memory_mb", "accuracy"} <= set(
        row
    )
    assert set(row["latency_ms"]) == {"n", "mean", "cv", "min", "p50", "p90", "p99", "max"}
    assert {"mAP", "NDS", "per_class"} <= set(raw["backends"][0]["accuracy"])
    assert raw["backends"][1]["latency_ms"] is None  # not measured is null, not 0


def test_the_report_reads_what_the_benchmark_writes(tmp_path: Path) -> None:
    view = load_for_report(write_bench(tmp_path / "bench.json", full_bench()))
    assert view.device == "Box (CPU)"
    assert view.engine is not None
    assert view.engine.key == "onnxruntime-fp16"
    assert view.backends[3].reason == "no NVIDIA GPU"


def test_rows_are_found_by_what_a_gate_calls_them() -> None:
    bench = full_bench()
    for reference, key in {
        "engine": "onnxruntime-fp16",
        "teacher": "teacher-fp32",
        "student-torch-fp32": "student-torch-fp32",
        "tensorrt_rtx": "tensorrt_rtx-fp16",
    }.items():
        row = bench.find(reference)
        assert row is not None
        assert row.key == key
    assert bench.find("tensorrt") is None
    assert bench.find("teacher-fp16") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(schema="bevkd.benchmark/2"), "has schema 'bevkd.benchmark/2'"),
        (lambda raw: raw.pop("boundary"), "boundary: Field required"),
        (lambda raw: raw["backends"][0].update(name="tf"), r"backends\.0\.name"),
        (lambda raw: raw["backends"][0].update(fps=3), r"backends\.0\.fps: Extra inputs"),
        (lambda raw: raw["backends"].append(raw["backends"][0]), "backends must be unique"),
        (lambda raw: raw["backends"][2].update(engine=None), "engine and engine_sha256 go together"),
        (lambda raw: raw["backends"][0]["accuracy"].update(mAP=1.5), r"mAP: .*less than or equal to 1"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, change, message: str) -> None:
    path = write_bench(tmp_path / "bench.json", full_bench())
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=message):
        load_bench(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="benchmark result not found"):
        load_bench(tmp_path / "bench.json")


def test_nan_is_no_measurement() -> None:
    with pytest.raises(ValidationError):
        LATENCY.model_validate({**LATENCY.model_dump(), "p50": float("nan")})


def test_artefact_fields_follow_links(tmp_path: Path) -> None:
    path = tmp_path / "student.fp16.onnx"
    path.write_bytes(b"x" * 2_500_000)
    link = tmp_path / "student.onnx"
    link.symlink_to(path.name)
    assert artefact_fields(link) == {"engine": "student.fp16.onnx", "engine_sha256": sha256_file(path), "size_mb": 2.5}
    assert make_row("onnxruntime", **artefact_fields(link)).engine == "student.fp16.onnx"
