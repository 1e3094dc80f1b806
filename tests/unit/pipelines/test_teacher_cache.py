"""Distillation with a cached teacher: the same bits whatever the cache holds, and never another teacher's maps."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import collate
from bevkd_deploy.distill.progress import Progress
from bevkd_deploy.distill.step import DistillationStep
from bevkd_deploy.distill.tap_report import TapReport
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.distill import distill
from bevkd_deploy.pipelines.teacher_cache import cache_description, cached_teacher
from bevkd_deploy.pipelines.training import training_frames
from bevkd_deploy.teachers.cache import CachedTeacher
from bevkd_deploy.teachers.frozen import FrozenTeacher

TEACHER = Path(__file__).resolve().parents[3] / "recipes" / "checkpoints" / "quickstart_teacher.safetensors"
QUIET = Console(quiet=True)
SMALL = (
    "data.synthetic={profile: tiny, train_scenes: 1, val_scenes: 1, seed: 0}",
    "student.train.precision=fp32",
    "student.train.checkpoint_every_steps=1",
    "distill.losses={heatmap: {weight: 10}}",
    "teacher.expect=null",
)  # fmt: skip


def settings(root: Path, *overrides: str) -> list[str]:
    """Overrides of the quickstart: three epochs of two batches, unless said otherwise."""
    given = {"student.train.epochs": "3", "student.train.batch_size": "2"}
    given.update(override.split("=", 1) for override in overrides)
    return [f"data.root={root}", *SMALL, *(f"{key}={value}" for key, value in given.items())]


class Crash(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tiny_world: Path, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    def distilled(name: str, *overrides: str, resume: bool = False, said: list[str] | None = None) -> dict[str, Tensor]:
        output = io.StringIO()
        console = Console(file=output, width=300)
        given = settings(tiny_world, *overrides)
        folder = tmp_path / name
        distill(Path("quickstart"), given, run_dir=folder, resume=resume, dry_run=False, console=console)
        if said is not None:
            said.append(output.getvalue())
        return load_file(folder / "checkpoints" / "last.safetensors")

    return distilled


@pytest.fixture
def frames_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames that the teacher's network has seen, a call each."""
    seen: list[int] = []
    forward = FrozenTeacher.__call__

    def note(self: FrozenTeacher, inputs: Any, positions: Any = ()) -> dict[str, Tensor]:
        seen.append(len(inputs["images"]))
        return forward(self, inputs, positions)

    monkeypatch.setattr(FrozenTeacher, "__call__", note)
    return seen


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def caches() -> list[Path]:
    return sorted(Path("runs/quickstart/teacher-cache").iterdir())


@pytest.mark.slow
def test_cold_warm_and_resumed_runs_end_with_the_same_bits(
    run: Callable[..., Any], frames_seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = "teacher.cache=fp16"
    cold = run("cold", cache, said=said)
    assert frames_seen == [1] * 12  # four frames, three epochs
    assert same(run("warm", cache, said=said), cold)
    assert len(frames_seen) == 12
    size = "1.5 MB"  # ten heatmaps of 80 x 80 cells in two bytes
    assert f"holds 0 frames, 0.0 MB; this run needs 12 frames, {size}" in said[0]
    assert [f"holds 12 frames, {size}" in text for text in said] == [True, True]
    assert f"holds 12 frames, {size}; this run needs 12 frames" in said[1]
    # Killed in the second epoch; what the cache held by then is lost too, or is not.
    for lost in (False, True):
        ask = CachedTeacher.__call__
        asked = 0

        def crash(self: CachedTeacher, inputs: Any, positions: Any = (), _ask: Any = ask) -> dict[str, Tensor]:
            nonlocal asked
            asked += 1
            if asked == 4:
                raise Crash
            maps: dict[str, Tensor] = _ask(self, inputs, positions)
            return maps

        shutil.rmtree("runs/quickstart/teacher-cache")
        monkeypatch.setattr(CachedTeacher, "__call__", crash)
        with pytest.raises(Crash):
            run(f"killed-{lost}", cache)
        monkeypatch.setattr(CachedTeacher, "__call__", ask)
        if lost:
            shutil.rmtree("runs/quickstart/teacher-cache")
        assert same(run(f"killed-{lost}", cache, resume=True), cold)
    # And a damaged file, found in the middle of a run that leaves the teacher's inputs out.
    for file in caches()[0].glob("maps-*"):
        content = bytearray(file.read_bytes())
        content[-40] ^= 1
        file.write_bytes(content)
    assert same(run("damaged", cache), cold)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-3)])
def test_the_cache_changes_losses_and_gradients_by_rounding_alone(
    tiny_world: Path, precision: str, tolerance: float
) -> None:
    """The shipped teacher and an untrained student. Later steps drift as they do after any other rounding."""
    recipe = load_recipe("quickstart", settings(tiny_world, f"teacher.cache={precision}")).recipe
    detector = build_detector(recipe.teacher.native_model, recipe.teacher_spec(), 0)
    load_detector(TEACHER, detector, recipe.teacher.native_model)
    frozen = FrozenTeacher(detector, recipe.teacher_spec())
    specs = {"student": recipe.student_spec(), "teacher": recipe.teacher_spec()}
    frames = training_frames(recipe, tiny_world, recipe.student.train, specs, QUIET)
    batch = collate([frames[0], frames[5]])

    def gradients(teacher: FrozenTeacher | CachedTeacher) -> tuple[float, Tensor]:
        student = build_detector(recipe.student.model, recipe.student_spec(), 0)
        step = DistillationStep(student, teacher, recipe.distill, TapReport({}, None))
        loss = step.train()(batch, Progress.at(1.0)).weighted["heatmap_kd_loss"]
        loss.backward()
        found = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
        return float(loss.detach()), torch.cat(found)

    live, live_gradient = gradients(frozen)
    with cached_teacher(recipe, tiny_world, "digest", frozen, frames, QUIET) as teacher:
        cached, gradient = gradients(teacher)
    assert live > 0.1 and cached != live
    assert cached == pytest.approx(live, rel=tolerance)
    assert float((gradient - live_gradient).norm()) < tolerance * float(live_gradient.norm())


@pytest.mark.slow
def test_one_frame_a_batch_in_full_precision_is_the_live_teacher(run: Callable[..., Any]) -> None:
    alone = "student.train.batch_size=1"
    assert same(run("live", alone), run("cached", alone, "teacher.cache=fp32"))


@pytest.mark.slow
def test_a_longer_run_adds_to_the_cache(run: Callable[..., Any], frames_seen: list[int]) -> None:
    run("first", "teacher.cache=fp16", "student.train.epochs=1")
    run("longer", "teacher.cache=fp16", "student.train.epochs=2", "student.train.batch_size=4")
    assert len(frames_seen) == 8 and len(caches()) == 1
    run("seed", "teacher.cache=fp16", "student.train.epochs=1", "seed=1")
    assert len(frames_seen) == 12 and len(caches()) == 2


@pytest.mark.slow
def test_without_augmentation_frames_are_kept_once(run: Callable[..., Any], frames_seen: list[int]) -> None:
    settled = ["teacher.cache=fp16", "student.train.augmentation={}", "student.train.epochs=2"]
    first = run("first", *settled)
    assert len(frames_seen) == 4
    assert same(run("again", *settled), first)
    run("seed", *settled, "seed=1")
    assert len(frames_seen) == 4


def described(root: Path, *overrides: str, digest: str = "w" * 64) -> dict[str, Any]:
    recipe = load_recipe("quickstart", settings(root, "teacher.cache=fp16", *overrides)).recipe
    specs = {"student": recipe.student_spec(), "teacher": recipe.teacher_spec()}
    frames = training_frames(recipe, root, recipe.student.train, specs, QUIET)
    precision = recipe.teacher.precision or recipe.student.train.precision
    frozen = FrozenTeacher(torch.nn.Identity(), recipe.teacher_spec(), precision)
    return cache_description(recipe, root, digest, frozen, frames)


@pytest.mark.parametrize(
    "change",
    [
        "seed=1", "teacher.precision=bf16", "teacher.cache=fp32", "student.train.augmentation.rotation_rad=0.3",
        "student.train.augmentation.image={scale: [0.9, 1.1]}", "student.train.augmentation.paste={}",
        "student.train.augmentation={}", "student.model.camera.image_size_px=[64, 256]", "data.sweeps=2",
        "data.sensors=camera", "data.on_error=drop_sensor", "data.cameras=[CAM_FRONT, CAM_BACK]",
        "teacher.model.head.top_k=100", "teacher.model.lidar.max_points=9", "data.train_split=val",
    ],
)  # fmt: skip
def test_whatever_decides_a_map_is_in_the_key(tiny_world: Path, change: str) -> None:
    assert described(tiny_world, change) != described(tiny_world)


@pytest.mark.parametrize(
    "change",
    [
        "student.train.epochs=6", "student.train.batch_size=1", "student.train.repeat=3",
        "student.train.class_balanced=true", "student.train.learning_rate=0.1", "student.model.head.channels=16",
        "distill.losses.heatmap.weight=50", "benchmark.frames=3",
    ],
)  # fmt: skip
def test_what_chooses_among_maps_is_not_in_the_key(tiny_world: Path, change: str) -> None:
    assert described(tiny_world, change) == described(tiny_world)


def test_pasting_ends_at_a_position_of_the_key(tiny_world: Path) -> None:
    paste = "student.train.augmentation.paste={until_fraction: 0.5}"
    longer = described(tiny_world, paste, "student.train.epochs=6")
    assert longer != described(tiny_world, paste)


def test_weights_and_sensor_files_are_in_the_key(tiny_world: Path, tmp_path: Path) -> None:
    assert described(tiny_world, digest="v" * 64) != described(tiny_world)
    world = tmp_path / "world"
    shutil.copytree(tiny_world, world)  # keeps the times
    assert described(world) == described(tiny_world)
    points = sorted((world / "samples" / "LIDAR_TOP").iterdir())[0]
    os.utime(points, (1, 1))
    assert described(world) != described(tiny_world)
