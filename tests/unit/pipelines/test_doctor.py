"""The diagnosis says ok, warn or missing for each thing, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bevkd_deploy.pipelines import doctor
from bevkd_deploy.pipelines.doctor import Check, diagnose


def by_name() -> dict[str, Check]:
    return {check.name: check for check in diagnose()}


def put_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make `script` the only nvidia-smi on the PATH."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_everything_is_listed_once_and_what_is_not_ok_has_a_fix() -> None:
    checks = diagnose()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    expected = {"python", "numpy", "onnxruntime", "torch", "onnx", "gpu", "tensorrt", "tensorrt_rtx", "disk"}
    assert expected | {"onnxruntime providers", "$NUSCENES_ROOT"} <= set(names)
    for check in checks:
        assert check.status in ("ok", "warn", "missing")
        assert check.found
        assert bool(check.fix) == (check.status != "ok"), check


def test_versions_are_the_installed_ones() -> None:
    checks = by_name()
    assert checks["numpy"] == Check("numpy", "ok", importlib.metadata.version("numpy"))
    assert checks["python"].found.startswith(".".join(map(str, sys.version_info[:3])))
    assert "CPU" in checks["onnxruntime providers"].found


def test_a_missing_base_package_is_missing_and_one_of_an_extra_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name.lower() in ("pyyaml", "polygraphy"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "typer" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = {check.name.lower(): check for check in diagnose()}
    assert checks["pyyaml"].status == "missing"
    assert checks["pyyaml"].fix.lower().startswith("pip install 'pyyaml>=")
    assert checks["polygraphy"].status == "warn"
    assert checks["polygraphy"].fix == "for export: pip install 'bevkd-deploy[onnx]'"
    assert (checks["typer"].status, checks["typer"].found) == ("warn", "0.1")
    assert checks["typer"].fix.startswith("pip install 'typer>=")


def test_the_gpu_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA L4, 8.9, 580.95.05, 23034 MiB"
    put_nvidia_smi(tmp_path, monkeypatch, f'echo "{line}"')
    assert by_name()["gpu"] == Check("gpu", "ok", line)


def test_a_driver_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, monkeypatch, 'echo "Failed to initialize NVML" >&2; exit 9')
    check = by_name()["gpu"]
    assert (check.status, check.found) == ("warn", "Failed to initialize NVML")
    assert "bevkd benchmark --engine student.onnx" in check.fix


def test_no_gpu_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert by_name()["gpu"].found == "no nvidia-smi"


def test_an_engine_library_that_crashes_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = by_name()["tensorrt"]
    assert check.status == "missing"
    assert check.found == "OSError: libnvinfer.so.10: cannot open shared object file"


@pytest.mark.parametrize(
    ("content", "status", "found"),
    [(None, "missing", "no such folder"), ([], "warn", "no v1.0-* tables in"), (["v1.0-mini"], "ok", "(v1.0-mini)")],
)
def test_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[str] | None, status: str, found: str
) -> None:
    root = tmp_path / "nuscenes"
    for folder in content or []:
        (root / folder).mkdir(parents=True)
    if content is not None:
        root.mkdir(exist_ok=True)
    monkeypatch.setenv("NUSCENES_ROOT", str(root))
    check = by_name()["$NUSCENES_ROOT"]
    assert check.status == status
    assert found in check.found


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage(".")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=3 << 30))
    check = by_name()["disk"]
    assert (check.status, check.found) == ("warn", "3 GiB free in the working directory")


def test_the_command_prints_the_same_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bevkd_deploy.cli.main", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert {"name": "numpy", "status": "ok", "found": importlib.metadata.version("numpy"), "fix": ""} in rows
