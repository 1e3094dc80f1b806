"""The part of a recipe that mmengine's Runner follows: data.cameras, teacher, student.model and distill."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, load_recipe, resolved_path
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.pipelines.teacher_network import open_teacher


def load_for_runner(recipe: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe whose training the Runner can carry out.

    The schedule, the optimizer and the data are those of the mmdet3d configuration; `student.train` is not looked at
    but for its augmentation (in BevkdInputs) and, where teacher.precision is absent, its precision.

    Raises:
        RecipeError: the recipe is wrong.
        UsageError: the training has stages, which switch terms and freeze modules where the Runner has none.
    """
    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.student.train.stages:
        raise UsageError(
            f"{loaded.path} trains in stages, which mmengine's Runner does not know; train it with bevkd distill, or "
            "take them out with overrides=['student.train.stages=[]']"
        )
    return loaded


def load_teacher(loaded: LoadedRecipe) -> DetectionNetwork:
    """The recipe's teacher with its weights.

    Raises:
        UsageError: the recipe trains its teacher, which is not done here.
        ArtifactError: the checkpoint is missing, damaged, or of another model.
    """
    teacher = loaded.recipe.teacher
    if teacher.checkpoint is None:
        raise UsageError(
            f"{loaded.path} has no teacher.checkpoint; train the teacher with bevkd train {loaded.path}, then name it: "
            "overrides=['teacher.checkpoint=RUN/checkpoints/last.safetensors']"
        )
    opened = open_teacher(loaded, Console(stderr=True))
    if teacher.source == "native":
        load_detector(resolved_path(loaded, teacher.checkpoint), opened.network, teacher.native_model, teacher.sha256)
    return opened.network


def open_spec(loaded: LoadedRecipe) -> GraphSpec | SensorSpec:
    """What the recipe's teacher is fed; a foreign one is opened to know it."""
    if loaded.recipe.teacher.source == "native":
        return loaded.recipe.teacher_spec()
    return open_teacher(loaded, Console(stderr=True)).spec
