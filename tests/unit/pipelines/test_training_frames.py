"""The training split of a recipe: resampling and paste reach the frames; the object database is made once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data import object_database
from bevkd_deploy.data.source import open_split
from bevkd_deploy.pipelines.training import training_frames

PASTE = "student.train.augmentation={paste: {up_to: {car: 8, pedestrian: 8, truck: 8}, until_fraction: 0.5}}"


def frames(root: Path, *overrides: str) -> Any:
    recipe = load_recipe("quickstart", ["student.train.epochs=4", *overrides]).recipe
    output = io.StringIO()
    console = Console(file=output, width=200)
    specs = {"student": recipe.student_spec(), "teacher": recipe.teacher_spec()}
    return training_frames(recipe, root, recipe.student.train, specs, console), output.getvalue()


def test_the_database_is_made_once_from_the_training_split_alone(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset, said = frames(tiny_world, PASTE)
    assert "collecting objects to paste" in said
    made = list((tmp_path / "runs" / "quickstart" / "objects").iterdir())
    assert len(made) == 1
    database = object_database.ObjectDatabase.load(made[0])
    train = open_split(load_recipe("quickstart").recipe.data, tiny_world, "train")
    known = {tuple(box) for sample in train for box in np.nan_to_num(sample.boxes).tolist()}
    assert len(database) > 3
    assert all(tuple(box) in known for box in np.nan_to_num(database.boxes).tolist())
    again, said = frames(tiny_world, PASTE)
    assert "collecting" not in said
    assert dataset.paster.until_position == again.paster.until_position == 2 * 4  # two of four epochs, four frames
    assert np.array_equal(dataset[1]["targets"]["heatmap"], again[1]["targets"]["heatmap"])
    assert len(list(made[0].parent.iterdir())) == 1


def test_class_balance_moves_the_end_of_pasting(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    balanced, _ = frames(tiny_world, PASTE, "student.train.class_balanced=true")
    draws = balanced.paster.until_position // 4
    labels = [np.unique(sample.labels[sample.num_points > 0]) for sample in balanced.samples]
    classes = len(np.unique(np.concatenate(labels)))
    assert draws == 2 * classes * (sum(map(len, labels)) // classes)


def test_without_paste_nothing_is_collected(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset, said = frames(tiny_world)
    assert (dataset.paster, said, list(tmp_path.iterdir())) == (None, "", [])
    assert dataset.target_of == "student"
