"""What a measurement ran on: the part of `bench.json` that tells two results apart.

Everything is read, nothing is changed: clocks are recorded, not locked. What cannot be read says why.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import bevkd_deploy
from bevkd_deploy.contracts.sidecar import utc_now

#: Distributions whose version changes a result. Read from their metadata: none of them is imported.
LIBRARIES: tuple[str, ...] = (
    "bevkd-deploy",
    "numpy",
    "opencv-python-headless",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "torch",
)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "sm": "compute_cap",
    "memory_mib": "memory.total",
    "power_limit_w": "power.limit",
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "temperature_c": "temperature.gpu",
}
_CLOCK_FIELDS = ("sm_clock_mhz", "max_sm_clock_mhz", "temperature_c")
_DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
_CPU_INFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def collect_environment() -> dict[str, Any]:
    """Device, software and clocks, as JSON values.

    Keys: device, date, commit, dirty, cpu {model, cores, threads}, gpu ("none" or its details), clocks, os, python,
    libraries, thread_settings.
    """
    cpu = {"model": _cpu_model(), "cores": _physical_cores(), "threads": os.cpu_count()}
    gpu, clocks = _jetson(board) if (board := _board_model()) else _gpu()
    commit, dirty = _commit(Path(bevkd_deploy.__file__).resolve().parents[1])
    return {
        "device": board or (gpu["name"] if gpu else f"{cpu['model']} (CPU)"),
        "date": utc_now(),
        "commit": commit,
        "dirty": dirty,
        "cpu": cpu,
        "gpu": gpu or "none",
        "clocks": clocks,
        "os": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": platform.python_version(),
        "libraries": _versions(),
        "thread_settings": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def device_label(engine_device: str, environment: dict[str, Any]) -> str:
    """The `device` of a backend's row.

    Args:
        engine_device: `Engine.device`, or "cpu" or a GPU's name for a model in PyTorch.
        environment: what `collect_environment` returned.
    """
    if engine_device == "cpu":
        return f"{environment['cpu']['model']} (CPU)"
    # Every Jetson Orin calls its GPU "Orin"; the board's name says which one it is.
    return _board_model() or engine_device


def _cpu_model() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _physical_cores() -> int | None:
    """Distinct (package, core) pairs; None where the kernel does not say."""
    if not _CPU_INFO.is_file():
        return None
    package, pairs = "0", set()
    for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "physical id":
            package = value.strip()
        elif key.strip() == "core id":
            pairs.add((package, value.strip()))
    return len(pairs) or None


def _board_model() -> str | None:
    """Name of a Jetson board, such as "NVIDIA Jetson AGX Orin Developer Kit"."""
    if not _DEVICE_TREE_MODEL.is_file():
        return None
    model = _DEVICE_TREE_MODEL.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    return model if "Jetson" in model else None


def _jetson(board: str) -> tuple[dict[str, Any], dict[str, Any] | str]:
    """A Jetson's GPU is part of the board, and its power mode sets clocks, SMs and cores alike."""
    if shutil.which("nvpmodel") is None:
        return {"name": board}, "not measured: nvpmodel is not installed"
    done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=20, check=False)
    mode = " ".join(done.stdout.split()) if done.returncode == 0 else ""
    return {"name": board}, {"power_mode": mode, "state": "as found"} if mode else "not measured: nvpmodel -q failed"


def _gpu() -> tuple[dict[str, Any] | None, dict[str, Any] | str]:
    """The first GPU and its clocks, or None and why there are no clocks."""
    if shutil.which("nvidia-smi") is None:
        return None, _cpu_clocks()
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS.values())}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None, "not measured: nvidia-smi does not answer"
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_GPU_FIELDS):
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no answer"])[-1]
        return None, f"not measured: nvidia-smi says '{last}'"
    found = dict(zip(_GPU_FIELDS, values, strict=True))
    clocks = {key: found.pop(key) for key in _CLOCK_FIELDS}
    return found, {**clocks, "state": "as found, not locked"}


def _cpu_clocks() -> str:
    if _GOVERNOR.is_file():
        return f"CPU governor {_GOVERNOR.read_text(encoding='utf-8').strip()}, not locked"
    return "not measured: no NVIDIA GPU, and the kernel shows no CPU frequency control"


def _commit(checkout: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from and whether it is changed; None for an installed package."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None, None
    head = _git(checkout, "rev-parse", "HEAD")
    status = _git(checkout, "status", "--porcelain")
    return (head, bool(status)) if head else (None, None)


def _git(checkout: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
