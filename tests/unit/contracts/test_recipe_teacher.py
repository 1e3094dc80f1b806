"""What a recipe may ask of its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd_deploy.contracts.errors import RecipeError
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import load_recipe

TOY = Path(__file__).resolve().parents[2] / "fixtures" / "toy.yaml"
HEATMAP_ONLY = "distill.losses={heatmap: {}}"


def load(*overrides: str) -> Recipe:
    return load_recipe(TOY, overrides).recipe


def problem(*overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(*overrides)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


def test_any_of_the_metrics_can_be_expected() -> None:
    assert load().teacher.expect is None
    both = load("teacher.expect={mAP: 0.6, NDS: 0.5, tolerance: 0.02, frames: 40}").teacher.expect
    assert both is not None and both.metrics == {"mAP": 0.6, "NDS": 0.5}
    assert (both.tolerance, both.frames) == (0.02, 40)
    one = load("teacher.expect.NDS=0.5").teacher.expect
    assert one is not None and one.metrics == {"NDS": 0.5}


def test_what_cannot_be_expected() -> None:
    assert "needs a metric: mAP, NDS or both" in problem("teacher.expect={tolerance: 0.1}")
    assert "must be less than or equal to 1, got 60" in problem("teacher.expect.mAP=60")
    assert "Did you mean 'mAP'?" in problem("teacher.expect={mAp: 0.6, NDS: 0.5}")


def test_the_old_key_leads_to_the_new_one() -> None:
    assert "unknown key. Did you mean 'expect'?" in problem("teacher.expected_map=0.6")


def test_a_cache_cannot_serve_features() -> None:
    told = problem("teacher.cache=fp16")
    assert "teacher.cache keeps the teacher's head maps, but distill.losses.feature reads features inside it" in told
    told = problem("teacher.cache=fp32", "distill.losses.attention={}")
    assert "distill.losses.feature, distill.losses.attention read features inside it" in told
    assert load("teacher.cache=fp16", HEATMAP_ONLY).teacher.cache == "fp16"


def test_heatmap_losses_need_the_heatmap_alone() -> None:
    every = ("heatmap", "reg", "dim")
    assert load(HEATMAP_ONLY).distill.teacher_maps(every) == ("heatmap",)
    assert load().distill.teacher_maps(every) == ("heatmap",)
    assert load().distill.feature_terms() == ["feature"]
