"""Each stage command calls exactly one pipeline function, with exactly these arguments."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bevkd_deploy import pipelines
from bevkd_deploy.cli.main import app
from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.requests import BenchmarkRequest, ExportRequest

Call = tuple[tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the module of one pipeline by a recorder; returns a function that runs a command and gives the call."""

    def run(stage: str, *arguments: str) -> Call:
        calls: list[Call] = []

        def record(*args: Any, **kwargs: Any) -> str:
            calls.append((args, kwargs))
            return "result"

        module = types.SimpleNamespace(**{stage: record})
        monkeypatch.setitem(sys.modules, f"bevkd_deploy.pipelines.{stage}", module)
        monkeypatch.setattr(pipelines, stage, module, raising=False)
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert len(calls) == 1
        return calls[0]

    return run


def without_console(kwargs: dict[str, Any]) -> dict[str, Any]:
    console = kwargs.pop("console")
    assert isinstance(console, Console)
    assert console.stderr
    return kwargs


def test_train(called: Any) -> None:
    args, kwargs = called("train", "train", "r.yaml", "a.b=1", "--no-distill", "c=2", "--run-dir", "out", "--resume")
    assert args == (Path("r.yaml"), ["a.b=1", "c=2"])
    assert without_console(kwargs) == {"run_dir": Path("out"), "resume": True, "student_only": True}


def test_train_defaults(called: Any) -> None:
    args, kwargs = called("train", "train", "quickstart")
    assert args == (Path("quickstart"), [])
    assert without_console(kwargs) == {"run_dir": None, "resume": False, "student_only": False}


def test_distill(called: Any) -> None:
    args, kwargs = called("distill", "distill", "r.yaml", "x=-1", "--dry-run")
    assert args == (Path("r.yaml"), ["x=-1"])
    assert without_console(kwargs) == {"run_dir": None, "resume": False, "dry_run": True}


def test_run(called: Any) -> None:
    args, kwargs = called("run", "run", "r.yaml", "--resume")
    assert args == (Path("r.yaml"), [])
    assert not kwargs.pop("results").stderr
    assert without_console(kwargs) == {"run_dir": None, "resume": True}


def test_export(called: Any) -> None:
    args, kwargs = called("export", "export", "--run", "runs/a", "--trt", "fp16", "--target", "l4")
    assert args[0] == ExportRequest(run=Path("runs/a"), trt="fp16", target="l4")
    assert isinstance(args[1], Console)
    assert kwargs == {}


def test_export_untrained(called: Any) -> None:
    args, _ = called("export", "export", "--recipe", "r.yaml", "--untrained", "--run-dir", "out", "--onnx-only")
    assert args[0] == ExportRequest(recipe=Path("r.yaml"), untrained=True, run_dir=Path("out"), onnx_only=True)


def test_benchmark(called: Any, tmp_path: Path) -> None:
    baseline = tmp_path / "base.json"
    baseline.write_text("{}")
    outputs = ["--json", "-", "--junit", "g.xml", "--summary", "s.md", "--html", "r.html"]
    args, kwargs = called(
        "benchmark", "benchmark", "--engine", "student.plan", "--run", "runs/a", *outputs, "--baseline", str(baseline),
        "--require", "a", "--require", "b",
    )  # fmt: skip
    assert args[0] == BenchmarkRequest(
        engine=Path("student.plan"),
        run=Path("runs/a"),
        json=Path("-"),
        junit=Path("g.xml"),
        summary=Path("s.md"),
        html=Path("r.html"),
        baseline=baseline,
        require=("a", "b"),
    )
    talk, results = args[1:]
    assert talk.stderr
    assert not results.stderr
    assert kwargs == {}


def test_compare(called: Any, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    args, kwargs = called("compare", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert args == (tmp_path / "a.json", tmp_path / "b.json")
    assert not kwargs["console"].stderr


def test_show(called: Any, tmp_path: Path) -> None:
    args, kwargs = called("show", "show", str(tmp_path))
    assert args == (tmp_path,)
    assert without_console(kwargs) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trt": "int8"}, "--trt int8 is not available in this version; use fp32 or fp16"),
        ({"trt": "bf16"}, "--trt bf16 is not available in this version; use fp32 or fp16"),
        ({"trt": "fp8"}, "--trt fp8 is not available in this version; use fp32 or fp16"),
        ({"trt": "half"}, "--trt half is not a precision; use fp32 or fp16"),
        ({"untrained": True, "run_dir": Path("d")}, "--untrained needs --recipe RECIPE"),
        ({"recipe": Path("r")}, "--recipe goes with --untrained"),
        ({"run_dir": Path("r")}, "--run-dir goes with --untrained"),
        ({"untrained": True, "recipe": Path("r"), "run_dir": Path("d"), "run": Path("x")}, "--run and --untrained"),
        ({"onnx_only": True, "trt": "fp16"}, "--onnx-only and --trt exclude each other"),
    ],
)  # fmt: skip
def test_export_requests_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportRequest(**fields)


def test_benchmark_requests_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes a \.plan or an \.onnx file, got student\.trt"):
        BenchmarkRequest(engine=Path("student.trt"))
    with pytest.raises(UsageError, match="--baseline: no such file"):
        BenchmarkRequest(baseline=tmp_path / "none.json")
