"""Stopped by Ctrl-C or killed outright, a run resumes to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd_deploy.contracts.files import sha256_file

from .conftest import RECIPES, SMALL

#: One thread and FP32: sums are then taken in one order, and runs can be compared bit for bit.
EXACT = (
    *[override for override in SMALL if not override.startswith("student.train.epochs")],
    "student.train.epochs=12", "student.train.precision=fp32", "student.train.batch_size=1",
    "student.train.checkpoint_every_steps=5", "gates=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bevkd: Callable[..., Any]) -> Path:
    """A folder with one uninterrupted run, `whole`."""
    folder = tmp_path_factory.mktemp("interrupted")
    process = _distill(folder, "--run-dir", "whole")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return folder


def _distill(folder: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bevkd_deploy.cli.main", "distill", str(RECIPES / "quickstart.yaml")]
    return subprocess.Popen(
        [*command, *EXACT, *args],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_steps(folder: Path, run: str, steps: int, process: subprocess.Popen[str]) -> None:
    """Until the saved state has seen that many steps."""
    state = folder / run / "state" / "state.pt"
    for _ in range(2400):
        assert process.poll() is None, "the run ended before it could be interrupted"
        if state.is_file() and torch.load(state, weights_only=True)["step"] >= steps:
            return
        time.sleep(0.05)
    raise AssertionError("the run made no progress")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_and_resumed_equals_uninterrupted(folder: Path, number: signal.Signals, code: int) -> None:
    name = f"stopped{number.value}"
    process = _distill(folder, "--run-dir", name)
    _wait_for_steps(folder, name, 15, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    if code == 130:
        assert "--resume" in err and "Traceback" not in err
    assert not (folder / name / "eval" / "student.json").exists()
    resumed = _distill(folder, "--run-dir", name, "--resume")
    _, err = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, err
    weights = "checkpoints/last.safetensors"
    assert sha256_file(folder / name / weights) == sha256_file(folder / "whole" / weights)
    whole, again = ((folder / run / "events.jsonl").read_text().splitlines() for run in ("whole", name))
    assert len(whole) == len(again)


def test_resuming_with_other_settings_is_refused(folder: Path, bevkd: Callable[..., Any]) -> None:
    recipe = str(RECIPES / "quickstart.yaml")
    done = bevkd("distill", recipe, *EXACT, "seed=5", "--run-dir", "whole", "--resume", cwd=folder, code=2)
    assert "other settings" in done.err


def test_an_existing_run_is_not_overwritten(folder: Path, bevkd: Callable[..., Any]) -> None:
    recipe = str(RECIPES / "quickstart.yaml")
    before = sha256_file(folder / "whole" / "checkpoints" / "last.safetensors")
    done = bevkd("distill", recipe, *EXACT, "--run-dir", "whole", cwd=folder, code=2)
    assert "--resume" in done.err
    assert sha256_file(folder / "whole" / "checkpoints" / "last.safetensors") == before
