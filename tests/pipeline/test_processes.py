"""`torchrun -m bevkd_deploy.cli.main`: two processes make one run, with one log, that one process goes on from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

TOY = Path(__file__).resolve().parents[1] / "fixtures" / "toy.yaml"
#: Small steps: AdamW makes whole steps of rounding errors (see tests/unit/distill/test_processes.py).
OVERRIDES = ("student.train.learning_rate=1e-4", "student.train.epochs=1", "teacher.train.epochs=1")


def torchrun(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "bevkd_deploy.cli.main", *args,
        ],
        cwd=folder, capture_output=True, text=True, timeout=1800, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "160"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "distill", str(TOY), *OVERRIDES)
    assert done.returncode == 0, done.stderr
    runs = [path for path in (tmp_path / "runs" / "toy").iterdir() if path.name[0].isdigit()]
    assert len(runs) == 1
    (run,) = runs
    log = (run / "log.txt").read_text().splitlines()
    said = [line.split(" ", 1)[1] for line in log]
    for once in ("  distilling (2)", "  training the teacher (2)", "  evaluating the student (4)"):
        assert said.count(once) == 1
    for once in (f"run runs/toy/{run.name}", "Next: bevkd export --trt fp16"):
        assert said.count(once) == 1
        assert (done.stdout + done.stderr).count(once) == 1
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] == "evaluation"] == ["evaluation"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert [stage["name"] for stage in manifest["stages"]] == ["distill"]
    teachers = list((tmp_path / "runs" / "toy").glob("teacher-????????????/checkpoints/last.json"))
    assert len(teachers) == 1
    assert not list(tmp_path.rglob(".*.pt"))


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    """The same recipe, batch norms and all; the weights agree to the rounding of sums."""
    command = ("train", str(TOY), "--no-distill", *OVERRIDES, "--run-dir")
    bevkd(*command, "one", cwd=tmp_path)
    done = torchrun(tmp_path, *command, "two")
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    # AdamW's first steps are as long as the learning rate (two of 1e-4) however small a gradient is: where it is near
    # zero, rounding decides its sign. Single weights may differ by whole steps, the average one by a hundredth of one.
    weights = [name for name, value in one.items() if value.is_floating_point() and "running" not in name]
    differences = torch.cat([(two[name] - one[name]).abs().flatten() for name in weights])
    assert differences.mean() < 4e-6
    for name in one:
        if "running" in name:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    first, second = (json.loads((tmp_path / name / "eval" / "student.json").read_text()) for name in ("one", "two"))
    assert first["present"]["mean_ap"] == pytest.approx(second["present"]["mean_ap"], abs=1e-3)


def test_what_one_process_must_do(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "run", str(TOY))
    assert done.returncode != 0
    assert "for one process: distil with torchrun, then go on with bevkd run RECIPE --resume" in done.stderr
    done = torchrun(tmp_path, "distill", str(TOY), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("everything is there") + done.stdout.count("everything is there") == 1
