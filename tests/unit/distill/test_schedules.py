"""Learning rates step by step, and which parameters decay."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bevkd_deploy.contracts.recipe_training import StageConfig, TrainConfig
from bevkd_deploy.distill.progress import Plan, Stage, stages_of
from bevkd_deploy.distill.schedules import adamw, start_schedule

STAGE = Stage(0, 0, 1, None, (), 0.1, "cosine", 0.2)


def rates_of(optimizer: torch.optim.Optimizer, stage: Stage, steps: int) -> list[float]:
    schedule = start_schedule(optimizer, stage, steps)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


@pytest.fixture
def optimizer() -> torch.optim.AdamW:
    return adamw(nn.Linear(2, 2), TrainConfig(epochs=1))


def test_cosine_rises_in_a_line_and_falls_in_a_half_wave(optimizer: torch.optim.AdamW) -> None:
    rates = rates_of(optimizer, STAGE, 10)
    assert rates[:2] == pytest.approx([0.05, 0.1])
    assert rates[2:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 9)) for step in range(1, 9)])
    assert rates[-1] > 0 and optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_the_shortest_trainings_have_a_rate(optimizer: torch.optim.AdamW, schedule: str, steps: int) -> None:
    rates = rates_of(optimizer, replace(STAGE, schedule=schedule), steps)
    assert all(0 < rate <= 0.1 for rate in rates)


def test_a_stage_begins_anew_whatever_came_before(optimizer: torch.optim.AdamW) -> None:
    other = adamw(nn.Linear(2, 2), TrainConfig(epochs=1))
    one_cycle = replace(STAGE, schedule="one_cycle", learning_rate=0.01)
    rates_of(optimizer, one_cycle, 7)
    assert optimizer.param_groups[0]["betas"][0] != 0.9
    assert rates_of(optimizer, STAGE, 5) == rates_of(other, STAGE, 5)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert rates_of(optimizer, one_cycle, 5) == rates_of(other, one_cycle, 5)


def test_one_cycle_is_pytorchs(optimizer: torch.optim.AdamW) -> None:
    reference = torch.optim.AdamW(nn.Linear(2, 2).parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(reference, 0.1, total_steps=21, pct_start=0.2)
    expected = []
    for _ in range(20):
        expected.append(schedule.get_last_lr()[0])
        reference.step()
        schedule.step()
    assert rates_of(optimizer, replace(STAGE, schedule="one_cycle"), 20) == expected
    assert max(expected) == pytest.approx(0.1, rel=0.01)


def test_norms_and_biases_need_not_decay() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    (group,) = adamw(module, TrainConfig(epochs=1, weight_decay=0.3)).param_groups
    assert group["weight_decay"] == 0.3 and len(group["params"]) == 4
    decayed, free = adamw(module, TrainConfig(epochs=1, weight_decay=0.3, decay_norms=False)).param_groups
    assert decayed["weight_decay"] == 0.3 and [p.ndim for p in decayed["params"]] == [4]
    assert free["weight_decay"] == 0 and [p.ndim for p in free["params"]] == [1, 1, 1]


def test_stages_take_what_they_do_not_say_from_the_section() -> None:
    config = TrainConfig(
        epochs=5, learning_rate=0.5, schedule="cosine", warmup_fraction=0.1,
        stages=(
            StageConfig(epochs=2, losses=(), freeze=("a*",)),
            StageConfig(epochs=3, learning_rate=0.2, schedule="one_cycle"),
        ),
    )  # fmt: skip
    assert stages_of(config) == [
        Stage(0, 0, 2, (), ("a*",), 0.5, "cosine", 0.1),
        Stage(1, 2, 3, None, (), 0.2, "one_cycle", 0.1),
    ]
    assert stages_of(TrainConfig(epochs=5)) == [Stage(0, 0, 5, None, (), 2e-3, "one_cycle", 0.2)]


@pytest.mark.parametrize(
    ("frames", "batch", "accumulate", "steps"),
    [(10, 3, 1, 3), (10, 3, 2, 2), (10, 3, 5, 1), (2, 3, 2, 1), (12, 3, 2, 2)],
)
def test_steps_of_an_epoch(frames: int, batch: int, accumulate: int, steps: int) -> None:
    stages = (StageConfig(epochs=1), StageConfig(epochs=2))
    plan = Plan.of(TrainConfig(epochs=3, batch_size=batch, accumulate=accumulate, stages=stages), frames)
    assert plan.steps_per_epoch == steps and plan.total_steps == 3 * steps
    assert [plan.steps_of(stage) for stage in plan.stages] == [steps, 2 * steps]
    assert [plan.stage_at(epoch).index for epoch in range(4)] == [0, 1, 1, 1]
    assert plan.progress(3 * steps).fraction == 1.0
