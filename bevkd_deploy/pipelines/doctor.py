"""What this machine offers each stage: versions, GPU, engine libraries, data and disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

DISTRIBUTION = "bevkd-deploy"
_GIB = 1 << 30
_FREE_DISK_GIB = 5

#: Extras in the order of the stages that need them, and what they are for.
_EXTRAS = {
    "train": "training and distillation",
    "onnx": "export",
    "rtx": "TensorRT-RTX plans",
}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        status: ok; warn: something works less well or is not set up; missing: a command will refuse to run.
        found: version, path or reason.
        fix: what to type or to do, '' when ok.
    """

    name: str
    status: Literal["ok", "warn", "missing"]
    found: str
    fix: str = ""


def diagnose() -> list[Check]:
    """Look at everything the stages need. Nothing is changed, and nothing heavy is imported but ONNX Runtime."""
    return [
        _python(),
        *_dependencies(),
        _gpu(),
        _engine_library("tensorrt_rtx", "builds and runs plans for GeForce, RTX and Ada GPUs; builds without a GPU"),
        _engine_library("tensorrt", "builds and runs plans for Jetson and data-centre GPUs"),
        _onnxruntime_providers(),
        _data_root("NUSCENES_ROOT"),
        _disk(),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.machine()} {platform.system()})"
    return Check("python", "ok", found)


def _dependencies() -> list[Check]:
    """Base requirements and those of the extras, as the installed metadata lists them."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return [Check(DISTRIBUTION, "missing", "not installed", "pip install -e . in the checkout")]
    checks = []
    for extra in ("", *_EXTRAS):
        for requirement in requirements:
            marker = requirement.marker
            in_base = marker is None or marker.evaluate({"extra": ""})
            in_extra = not in_base and marker is not None and marker.evaluate({"extra": extra})
            if in_extra if extra else in_base:
                checks.append(_dependency(requirement, extra))
    return checks


def _dependency(requirement: Requirement, extra: str) -> Check:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if not extra:
            return Check(requirement.name, "missing", "not installed", f"pip install '{requirement}'")
        wanted = f"pip install '{DISTRIBUTION}[{extra}]'"
        return Check(requirement.name, "warn", "not installed", f"for {_EXTRAS[extra]}: {wanted}")
    if requirement.specifier and not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "warn", version, f"pip install '{requirement}'")
    return Check(requirement.name, "ok", version)


def _gpu() -> Check:
    fix = "plans cannot run here; ONNX files run on the CPU (bevkd benchmark --engine student.onnx)"
    if shutil.which("nvidia-smi") is None:
        return Check("gpu", "warn", "no nvidia-smi", fix)
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return Check("gpu", "warn", "nvidia-smi does not answer", "restart the driver; until then: " + fix)
    found = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    if done.returncode or not found:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return Check("gpu", "warn", lines[-1] if lines else "nvidia-smi lists no GPU", fix)
    return Check("gpu", "ok", found)


def _engine_library(module: str, purpose: str) -> Check:
    """An engine library, imported in a process of its own: a broken one may crash, and it is slow to load."""
    if importlib.util.find_spec(module) is None:
        extra = "rtx" if module == "tensorrt_rtx" else "tensorrt"
        return Check(module, "warn", "not installed", f"{purpose}: pip install '{DISTRIBUTION}[{extra}]'")
    code = f"import {module} as library; print(library.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["crashed while importing"])[-1]
        return Check(module, "missing", reason, "reinstall it; its libraries must match the driver")
    return Check(module, "ok", done.stdout.strip())


def _onnxruntime_providers() -> Check:
    name = "onnxruntime providers"
    if importlib.util.find_spec("onnxruntime") is None:
        return Check(name, "missing", "not installed", "pip install onnxruntime")
    import onnxruntime

    providers = [item.removesuffix("ExecutionProvider") for item in onnxruntime.get_available_providers()]
    return Check(name, "ok", ", ".join(providers))


def _data_root(variable: str) -> Check:
    """A dataset root named by an environment variable; the synthetic dataset needs none."""
    name, value = f"${variable}", os.environ.get(variable, "")
    fix = f"export {variable}=/path/to/nuscenes; recipes with synthetic data do without"
    if not value:
        return Check(name, "warn", "not set", fix)
    root = Path(value).expanduser()
    if not root.is_dir():
        return Check(name, "missing", f"no such folder: {root}", fix)
    versions = sorted(item.name for item in root.glob("v1.0-*") if item.is_dir())
    if not versions:
        return Check(name, "warn", f"no v1.0-* tables in {root}", "name the folder with samples/ and v1.0-*/")
    return Check(name, "ok", f"{root} ({', '.join(versions)})")


def _disk() -> Check:
    free_gib = shutil.disk_usage(Path.cwd()).free / _GIB
    found = f"{free_gib:.0f} GiB free in the working directory"
    if free_gib < _FREE_DISK_GIB:
        return Check("disk", "warn", found, f"runs and synthetic data want {_FREE_DISK_GIB} GiB")
    return Check("disk", "ok", found)
