"""Starting `fit_process.py`, and looking at what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).with_name("fit_process.py")


def launch(job: dict[str, Any], processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, or to its death."""
    file = Path(job["folder"]) / "job.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(job))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(file)],
        capture_output=True, text=True, timeout=1800, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Events without their times."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def load(file: Path) -> Any:
    """Tensors of a file."""
    return torch.load(file, weights_only=True)


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two nested states are not the same bits."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, (list, tuple)):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if isinstance(first, dict):
        if set(first) != set(second):
            return [f"{path}: {set(first) ^ set(second)}"]
        return [line for key in first for line in differences(first[key], second[key], f"{path}/{key}")]
    return [] if first == second else [f"{path}: {first} != {second}"]


def farthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], least: float = 1e-6) -> tuple[float, str]:
    """Largest difference of two sets of weights, relative to the largest value of its tensor, and where.

    Tensors of smaller values than `least` are compared relative to that.
    """
    assert set(first) == set(second)
    return max(
        (float((first[key].double() - second[key].double()).abs().max() / first[key].abs().max().clamp(min=least)), key)
        for key in first
    )
