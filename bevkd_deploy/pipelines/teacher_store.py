"""`bevkd teacher cache`: run the teacher over all frames of a distillation before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import FrameDataset, batched
from bevkd_deploy.pipelines.datasets import prepare_data
from bevkd_deploy.pipelines.progress import bar
from bevkd_deploy.pipelines.teacher import obtain_teacher
from bevkd_deploy.pipelines.teacher_cache import cache_positions, cached_teacher, frozen_teacher
from bevkd_deploy.pipelines.teacher_network import open_teacher
from bevkd_deploy.pipelines.training import training_frames
from bevkd_deploy.teachers.cache import CachedTeacher


class _Inputs(Dataset[dict[str, Tensor]]):
    """The teacher's inputs at some positions, prepared by workers."""

    def __init__(self, frames: FrameDataset, positions: list[int]) -> None:
        self.frames, self.positions = frames, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.frames.inputs_of(self.positions[index], "teacher")


def fill_cache(recipe_path: Path, overrides: Sequence[str], *, console: Console) -> Path:
    """Evaluate the teacher, then store what every frame of the distillation needs; returns the store's folder.

    Raises:
        UsageError: the recipe keeps nothing.
        ArtifactError: the teacher does not fit or scores less than the recipe expects.
    """
    loaded = load_recipe(recipe_path, overrides)
    recipe = loaded.recipe
    if recipe.teacher.cache is None:
        raise UsageError(
            f"{loaded.path} keeps nothing of its teacher: add teacher.cache=fp16 here and to bevkd distill, or cache: "
            "fp16 to the recipe's teacher section"
        )
    root = prepare_data(recipe, console)
    opened = open_teacher(loaded, console)
    specs = {"student": recipe.student_spec(), "teacher": opened.spec}
    frames = training_frames(recipe, root, recipe.student.train, specs, console)
    teacher = obtain_teacher(loaded, root, console, opened)
    frozen = frozen_teacher(recipe, teacher.detector)
    with cached_teacher(recipe, root, teacher.key, frozen, frames, console) as cached:
        assert isinstance(cached, CachedTeacher)  # teacher.cache is set
        _fill(cached, frames, cache_positions(recipe, frames), recipe.student.train.workers, console)
        return cached.store.folder


def _fill(teacher: CachedTeacher, frames: FrameDataset, positions: list[int], workers: int, console: Console) -> None:
    wanted = [position for position in positions if frames.content_of(position) not in teacher.store]
    loader = DataLoader(_Inputs(frames, wanted), batch_size=None, num_workers=workers)
    with bar(console, "asking the teacher", len(wanted)) as progress:
        for position, inputs in zip(wanted, loader, strict=True):
            teacher(batched([inputs]), [position])
            progress.advance()
