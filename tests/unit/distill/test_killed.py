"""Killed by SIGKILL again and again, with everything on that keeps a state, a run ends with the very same bits."""

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

from bevkd_deploy.contracts.recipe import ModelConfig

SCRIPT = Path(__file__).with_name("fit_process.py")

#: 8 batches an epoch in steps of 3, 3 and 2; two stages of two epochs; 12 steps.
EVERYTHING = {
    "epochs": 4, "batch_size": 1, "repeat": 2, "accumulate": 3, "learning_rate": 0.01, "precision": "fp16",
    "ema_decay": 0.9, "workers": 2, "checkpoint_every_steps": 2,
    "stages": [
        {"epochs": 2, "losses": ["heatmap", "contrast"], "freeze": ["img_backbone"]},
        {"epochs": 2, "learning_rate": 0.004, "schedule": "cosine"},
    ],
}  # fmt: skip
TERMS = {
    "losses": {
        "heatmap": {},
        "feature": {},
        "contrast": {"embedding_channels": 8, "cells_per_sample": 32, "queue_size": 80},
    }
}

#: (how it dies, step of the state that it leaves behind, files left half done)
DEATHS = [
    (["step", 5], 4, 0),
    (["write", 1], 4, 1),  # of the state of step 6, which is also the end of an epoch and of a stage
    (["rename", 1], 4, 1),
    (["weights", 3], 6, 0),  # a resumed run first writes the weights of its state: once at 4, then at 6
    (["evaluate", 2], 9, 0),  # the evaluation of step 6 again, then the one of step 9
]


def launch(job: dict[str, Any], processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, or to its death."""
    file = Path(job["folder"]) / "job.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(job))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(file)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(
    tiny_world: Path, teacher_config: ModelConfig, tiny_model_config: Callable[..., ModelConfig]
) -> Callable[..., dict[str, Any]]:
    models = {"student": tiny_model_config(), "teacher": teacher_config}

    def make(folder: Path, train: dict[str, Any], **options: Any) -> dict[str, Any]:
        described = {name: model.model_dump(mode="json") for name, model in models.items()}
        return {"world": str(tiny_world), "folder": str(folder), "train": train, "distill": None, **described, **options}

    return make


def events_of(folder: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two nested states are not the same bits."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if set(first) != set(second):
            return [f"{path}: {set(first) ^ set(second)}"]
        return [line for key in first for line in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, (list, tuple)):
        return [line for i, (a, b) in enumerate(zip(first, second, strict=True)) for line in differences(a, b, f"{path}/{i}")]
    return [] if first == second else [f"{path}: {first} != {second}"]


def load(file: Path) -> Any:
    return torch.load(file, weights_only=True)


@pytest.mark.slow
def test_killed_again_and_again(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    done = launch(job(tmp_path / "whole", EVERYTHING, distill=TERMS))
    assert done.returncode == 0, done.stderr
    whole = load(tmp_path / "whole" / "state.pt")
    assert whole["step"] == 12 and whole["scaler"]["scale"] > 1 and whole["average"]["updates"] > 6
    assert int(whole["module"]["terms.contrast.cursor"]) > 0

    cut = tmp_path / "cut"
    for number, (die, step, leftovers) in enumerate(DEATHS):
        done = launch(job(cut, EVERYTHING, distill=TERMS, die=die, resume=number > 0))
        assert done.returncode == -9, f"{die}: {done.stderr}"
        assert load(cut / "state.pt")["step"] == step, die
        assert len(list(cut.glob(".state.pt.*"))) == leftovers, die
    done = launch(job(cut, EVERYTHING, distill=TERMS, resume=True))
    assert done.returncode == 0, done.stderr
    assert differences(whole, load(cut / "state.pt")) == []
    assert differences(load(tmp_path / "whole" / "weights.pt"), load(cut / "weights.pt")) == []
    assert events_of(cut) == events_of(tmp_path / "whole")
    assert (cut / "drawn.json").read_text() == (tmp_path / "whole" / "drawn.json").read_text()
    assert list(cut.glob(".state.pt.*")) == []
