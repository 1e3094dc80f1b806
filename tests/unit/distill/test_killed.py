"""Killed by SIGKILL again and again, with everything on that keeps a state, a run ends with the very same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .launching import differences, events_of, launch, load

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


@pytest.mark.slow
def test_killed_again_and_again(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    done = launch(job(tmp_path / "whole", EVERYTHING, distill=TERMS))
    assert done.returncode == 0, done.stderr
    whole = load(tmp_path / "whole" / "state.pt")
    assert whole["step"] == 12 and whole["scaler"]["scale"] > 1 and whole["average"]["updates"] > 6
    assert int(whole["module"]["terms.contrast.loss.cursor"]) > 0

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
    assert (cut / "each.json").read_text() == (tmp_path / "whole" / "each.json").read_text()  # the next draw
    assert list(cut.glob(".state.pt.*")) == []
