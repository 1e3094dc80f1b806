"""Two processes (gloo, torchrun) train what one trains, batch norm included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .launching import differences, events_of, farthest, launch, load

#: 8 frames an epoch: four batches of 2, in steps of three batches and of one.
TRAIN = {
    "epochs": 3, "batch_size": 2, "repeat": 2, "accumulate": 3, "learning_rate": 0.001, "ema_decay": 0.9,
    "checkpoint_every_steps": 2,
}  # fmt: skip
CONTRAST = {"losses": {"contrast": {"embedding_channels": 8, "cells_per_sample": 32, "queue_size": 80}}}

#: Of the largest value of each tensor. Sums are taken in another order; then AdamW divides gradients by their own size,
#: so that what is left of a gradient of zero becomes a step, and the networks part, slowly at first. Measured:
#: 1e-5 and 1e-5.
GRADIENTS, WEIGHTS = 1e-4, 2e-4


def each_of(folder: Path) -> list[dict[str, Any]]:
    each: list[dict[str, Any]] = json.loads((folder / "each.json").read_text())
    return each


#: Every term that divides by something of its batch, as strong as the detection loss or stronger. Contrast draws its
#: cells at random, in each process others.
TERMS = {
    "warmup_fraction": 0.0,
    "losses": {
        "heatmap": {"weight": 100}, "quality_focal": {"weight": 100, "beyond_truth": 0.5}, "boxes": {"weight": 10},
        "attention": {"weight": 100}, "feature": {"weight": 10},
    },
}  # fmt: skip
BY_AREA = {"warmup_fraction": 0.0, "losses": {"feature": {"weight": 100, "weighting": "box_area"}}}


@pytest.mark.slow
@pytest.mark.parametrize("distill", [None, TERMS, BY_AREA], ids=["detection", "terms", "box_area"])
def test_the_gradient_of_two_processes_is_that_of_one(
    job: Callable[..., dict[str, Any]], tmp_path: Path, distill: dict[str, Any] | None
) -> None:
    """After one step AdamW's first moment is a tenth of the gradient, clipped."""
    train = {"epochs": 1, "batch_size": 2, "accumulate": 2, "weight_decay": 0.0}
    moments = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        done = launch(job(folder, train, distill=distill), count)
        assert done.returncode == 0, done.stderr
        saved = load(folder / "state.pt")
        assert saved["step"] == 1
        moments.append({str(key): value["exp_avg"] for key, value in saved["optimizer"]["state"].items()})
    # A bias before a standardised map has no gradient but rounding.
    distance, where = farthest(*moments, least=1e-4)
    assert distance < GRADIENTS, where


@pytest.mark.slow
def test_two_processes_equal_one(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Steps of three batches and of one; objects are unevenly spread over the frames."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, count in ((one, 1), (two, 2)):
        done = launch(job(folder, TRAIN), count)
        assert done.returncode == 0, done.stderr
        assert "Grad strides" not in done.stderr
    distance, where = farthest(load(one / "weights.pt"), load(two / "weights.pt"))
    assert distance < WEIGHTS, where
    raw = [load(folder / "state.pt")["module"] for folder in (one, two)]
    assert farthest(*raw)[0] < WEIGHTS
    first, second = events_of(one), events_of(two)
    assert len(first) == len(second) == 9
    for mine, other in zip(first, second, strict=True):
        assert mine["event"] == other["event"]
        if mine["event"] == "step":
            assert mine["learning_rate"] == other["learning_rate"]
            assert mine["losses"] == pytest.approx(other["losses"], rel=1e-4)

    (alone,), shares = each_of(one), each_of(two)
    taken = [share["taken"] for share in shares]
    assert len(taken[0]) == len(taken[1]) == 12
    # Each batch of two is dealt one by one, so that nothing is taken twice or left out.
    assert [frame for pair in zip(*taken, strict=True) for frame in pair] == alone["taken"]
    assert shares[0]["drawn"] != shares[1]["drawn"]


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Each process draws its own cells, and goes on drawing where it was."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = launch(job(whole, TRAIN, distill=CONTRAST), 2)
    assert done.returncode == 0, done.stderr
    done = launch(job(cut, TRAIN, distill=CONTRAST, die=["step", 3]), 2)
    assert done.returncode != 0
    assert load(cut / "state.pt")["step"] == 2
    done = launch(job(cut, TRAIN, distill=CONTRAST, resume=True), 2)
    assert done.returncode == 0, done.stderr
    assert differences(load(whole / "state.pt"), load(cut / "state.pt")) == []
    assert differences(load(whole / "weights.pt"), load(cut / "weights.pt")) == []
    assert events_of(whole) == events_of(cut)
    assert [share["drawn"] for share in each_of(whole)] == [share["drawn"] for share in each_of(cut)]


def test_a_batch_that_cannot_be_dealt(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    done = launch(job(tmp_path, {**TRAIN, "batch_size": 3}), 2)
    assert done.returncode != 0
    assert "a batch of 3 frames cannot be dealt to 2 processes evenly; set train.batch_size to a multiple of 2" in (
        done.stderr
    )
    done = launch(job(tmp_path, {**TRAIN, "batch_size": 10}), 2)
    assert "8 frames an epoch are less than a batch of 10" in done.stderr
