"""Weights of terms: fixed, measured once and then frozen, ramps, and terms that teach nothing."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from bevkd_deploy.contracts.errors import DeadTermError
from bevkd_deploy.contracts.recipe_distill import DistillConfig
from bevkd_deploy.distill.weighting import ALIVE_WITHIN_STEPS, TermWeights, gradient_norms


def weights_of(heatmap: Any = 10.0, feature: Any = None, **settings: Any) -> TermWeights:
    losses = {"heatmap": {"weight": heatmap}}
    if feature is not None:
        losses["feature"] = {"weight": feature}
    return TermWeights(DistillConfig.model_validate({"losses": losses, **settings}))


def test_fixed_weights_stay() -> None:
    weights = weights_of(7.0, 0.5)
    for _ in range(50):
        weights.observe({"heatmap": 3.0, "feature": 1e-4}, 1.0)
        weights.advance()
    assert (weights.weight("heatmap"), weights.weight("feature")) == (7.0, 0.5)


def test_an_auto_weight_is_measured_in_its_window_and_then_frozen() -> None:
    weights = weights_of(10.0, {"auto": 0.5}, calibration={"first_step": 2, "steps": 2})
    seen = []
    for norm in (100.0, 100.0, 4.0, 16.0, 1000.0, 1000.0):
        weights.observe({"heatmap": 1.0, "feature": norm}, 2.0)
        seen.append(weights.weight("feature"))
        weights.advance()
    # Off before the window; 0.5 * 2 / 4 in its first step; then with the geometric mean of 4 and 16, for good.
    assert seen == pytest.approx([0.0, 0.0, 0.25, 0.125, 0.125, 0.125])
    assert weights.weight("heatmap") == 10.0


def test_steps_without_a_gradient_do_not_count_in_the_calibration() -> None:
    weights = weights_of({"auto": 1.0}, calibration={"first_step": 1, "steps": 3})
    weights.advance()
    for norm in (0.0, 2.0, 0.0):
        weights.observe({"heatmap": norm}, 6.0)
        weights.advance()
    assert weights.weight("heatmap") == pytest.approx(3.0)


def test_measured_weights_are_part_of_the_state() -> None:
    weights = weights_of(10.0, {"auto": 0.5}, calibration={"first_step": 1, "steps": 2})
    fresh = copy.deepcopy(weights)
    for norm in (3.0, 4.0):
        weights.observe({"heatmap": 1.0, "feature": norm}, 2.0)
        weights.advance()
    fresh.load_state_dict(weights.state_dict())
    assert fresh.weight("feature") == weights.weight("feature") == 0.25
    assert (fresh.step, fresh.measured) == (weights.step, weights.measured)
    for both in (weights, fresh):
        both.observe({"heatmap": 1.0, "feature": 16.0}, 2.0)
    assert fresh.weight("feature") == weights.weight("feature") == 0.125


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.79, 1.0), (0.8, 0.0), (1.0, 0.0)]
)
def test_warm_up_and_stop(progress: float, expected: float) -> None:
    weights = weights_of(warmup_fraction=0.1, stop_fraction=0.8)
    assert weights.ramp(progress) == pytest.approx(expected)


def test_without_a_stop_terms_count_to_the_end() -> None:
    assert weights_of(warmup_fraction=0.0).ramp(0.0) == 1.0
    assert weights_of().ramp(1.0) == 1.0


def test_norms_are_measured_until_all_live_then_now_and_then() -> None:
    weights = weights_of(10.0, 1.0, log_gradients_every=4)
    wanted = []
    for step in range(9):
        wanted.append(weights.wants_norms())
        if wanted[-1]:
            weights.observe({"heatmap": 1.0, "feature": float(step > 1)}, 1.0)
        weights.advance()
    assert wanted == [True, True, True, False, True, False, False, False, True]


def test_a_term_that_a_stage_switches_on_later_is_measured_then() -> None:
    """Calibration and the search for dead terms count the steps in which a term is on."""
    weights = weights_of(10.0, {"auto": 0.5}, calibration={"first_step": 2, "steps": 2}, log_gradients_every=0)
    for step in range(30):
        assert weights.wants_norms(["heatmap"]) == (step in (0, 2, 3))
        if weights.wants_norms(["heatmap"]):
            weights.observe({"heatmap": 1.0}, 2.0)
        weights.advance(["heatmap"])
    assert weights.weight("feature") == 0.0
    assert not weights.wants_norms([])
    seen = []
    for norm in (100.0, 100.0, 4.0, 16.0, 1000.0):
        weights.observe({"heatmap": 1.0, "feature": norm}, 2.0)
        seen.append(weights.weight("feature"))
        weights.advance(["heatmap", "feature"])
    assert seen == pytest.approx([0.0, 0.0, 0.25, 0.125, 0.125])


def test_a_term_that_never_moves_the_student_stops_the_run_by_name() -> None:
    weights = weights_of(10.0, 1.0)
    for _ in range(ALIVE_WITHIN_STEPS - 1):
        weights.observe({"heatmap": 1.0, "feature": 0.0}, 1.0)
    with pytest.raises(DeadTermError, match=r"distillation term feature: no gradient on the student in the first 20"):
        weights.observe({"heatmap": 1.0, "feature": 0.0}, 1.0)


def test_gradient_norms_are_those_of_the_parameters() -> None:
    layer, other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    x = torch.tensor([[3.0, 4.0]])
    losses = {"detection": layer(x).sum(), "feature": 2 * layer(x).sum() + 0 * other(x).sum()}
    norms = gradient_norms(losses, [layer.weight, other.weight])
    assert norms == pytest.approx({"detection": 5.0, "feature": 10.0})
    assert layer.weight.grad is None
    sum(losses.values()).backward()  # the graph is still there
    assert layer.weight.grad is not None and layer.weight.grad.norm().item() == pytest.approx(15.0)


def test_gradient_norms_of_half_precision_do_not_vanish() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    x = torch.full((1, 4), 1e-3)
    with torch.autocast("cpu", dtype=torch.float16):
        norms = gradient_norms({"feature": layer(x).float().sum() * 1e-4}, [layer.weight])
    assert norms["feature"] == pytest.approx(4 * 1e-7, rel=0.05)  # 16 entries of 1e-7 each: below half precision
    assert not math.isnan(norms["feature"])


@pytest.mark.parametrize("kind", ["detached", "elsewhere"])
def test_a_term_without_a_connection_stops_the_run_at_once(kind: str) -> None:
    layer, elsewhere = nn.Linear(2, 1), nn.Linear(2, 1)
    x = torch.ones(1, 2)
    loss = layer(x).sum().detach() if kind == "detached" else elsewhere(x).sum()
    with pytest.raises(DeadTermError, match="distillation term attention is not connected to the student"):
        gradient_norms({"attention": loss}, list(layer.parameters()))


def test_a_recipe_that_teaches_nothing_is_refused() -> None:
    for losses in ({}, {"heatmap": {"weight": 0}}, {"heatmap": None}):
        with pytest.raises(ValueError, match="no term is on, so nothing would be distilled"):
            DistillConfig.model_validate({"losses": losses})
    with pytest.raises(ValueError, match=r"a weight is a number or \{auto: RATIO\}"):
        weights_of({"fixed": 1.0, "auto": 2.0})
    for wrong in ("heavy", True, [1.0], None):
        with pytest.raises(ValueError, match=r"must be a number or \{auto: RATIO\}, got"):
            weights_of(wrong)
    with pytest.raises(ValueError, match="stop_fraction 0.1 must be greater than warmup_fraction 0.2"):
        weights_of(warmup_fraction=0.2, stop_fraction=0.1)


def test_a_weight_is_written_as_it_was_given() -> None:
    config = DistillConfig.model_validate({"losses": {"heatmap": {"weight": 50}, "feature": {"weight": {"auto": 0.5}}}})
    dumped = config.model_dump(mode="json")
    assert dumped["losses"]["heatmap"]["weight"] == 50
    assert dumped["losses"]["feature"]["weight"] == {"auto": 0.5}
    assert DistillConfig.model_validate(dumped) == config
