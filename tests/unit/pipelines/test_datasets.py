"""The data stage takes a synthetic world that is there only if it is the recipe's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.pipelines.datasets import prepare_data

QUIET = Console(quiet=True)


def recipe_of(root: Path, **changes: object) -> Recipe:
    """The quickstart on the tiny world, or on one that differs from it."""
    world = {"profile": "tiny", "train_scenes": 1, "val_scenes": 1, **changes}
    overrides = [f"data.synthetic.{key}={value}" for key, value in world.items()]
    return load_recipe("quickstart", [f"data.root={root}", *overrides]).recipe


def test_the_recipes_world_is_taken(tiny_world: Path) -> None:
    assert prepare_data(recipe_of(tiny_world), QUIET) == tiny_world


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"difficulty": "hard"}, "difficulty is normal, not hard"),
        ({"profile": "quickstart"}, "profile is tiny, not quickstart"),
        ({"train_scenes": 2}, "train_scenes is 1, not 2"),
        ({"seed": 3}, "seed is 0, not 3"),
    ],
)
def test_another_world_is_refused(tiny_world: Path, change: dict[str, object], difference: str) -> None:
    with pytest.raises(DataError, match=f"holds another synthetic dataset: {difference}. Choose another data.root"):
        prepare_data(recipe_of(tiny_world, **change), QUIET)


def test_a_world_of_the_first_generator_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    made = json.loads((tiny_world / "dataset.json").read_text())
    del made["profile"]["difficulty"]
    made["generator_version"] = 1
    shutil.copytree(tiny_world / "v1.0-trainval", tmp_path / "v1.0-trainval")
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match="difficulty is not recorded, not normal; generator is 1, not 2"):
        prepare_data(recipe_of(tmp_path), QUIET)


def test_a_world_of_the_recipes_difficulty_is_written(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "world", difficulty="easy")
    root = prepare_data(recipe, QUIET)
    assert json.loads((root / "dataset.json").read_text())["profile"]["difficulty"]["name"] == "easy"
    assert prepare_data(recipe, QUIET) == root
