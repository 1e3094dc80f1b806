"""The command line in a subprocess, and one small chain that several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
KEYFRAME = REPOSITORY.parent / "shared" / "data" / "nuscenes_keyframe"

#: Overrides that shrink recipes/quickstart.yaml to seconds; the path through the code stays the same.
SMALL = (
    "data.root=world",
    "data.synthetic.profile=tiny",
    "data.synthetic.train_scenes=2",
    "data.synthetic.val_scenes=1",
    "teacher.expect=null",
    "student.train.epochs=2",
    "benchmark.frames=3",
    "benchmark.rounds=2",
    "benchmark.warmup_seconds=0",
    "benchmark.pictures=1",
    "export.parity_frames=2",
)


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


def run_bevkd(*args: str, cwd: Path, code: int | None = 0, timeout: int = 600) -> Done:
    """Run `bevkd ARGS` as a user would, and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "bevkd_deploy.cli.main", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "160"},
        check=False,
    )
    if code is not None:
        assert done.returncode == code, f"bevkd {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def bevkd() -> Callable[..., Done]:
    return run_bevkd


@dataclass(frozen=True)
class Chain:
    """A folder in which the quickstart was distilled, exported and measured."""

    folder: Path
    run: Path
    distill: Done
    export: Done
    benchmark: Done


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """distill, export, benchmark, each typed as the README has it; gates off, as two epochs prove nothing."""
    folder = tmp_path_factory.mktemp("chain")
    distill = run_bevkd("distill", str(RECIPES / "quickstart.yaml"), *SMALL, "gates=[]", cwd=folder)
    export = run_bevkd("export", "--trt", "fp16", cwd=folder)
    benchmark = run_bevkd("benchmark", "--engine", "student.onnx", cwd=folder)
    run = (folder / "runs" / "quickstart" / "latest").resolve()
    return Chain(folder, run, distill, export, benchmark)
