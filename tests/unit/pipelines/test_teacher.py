"""The teacher is measured before anything learns from it, and refused when it is weaker than the recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, load_recipe
from bevkd_deploy.contracts.recipe_teacher import TeacherExpectation
from bevkd_deploy.pipelines import teacher as stage
from bevkd_deploy.pipelines.distill import distill
from bevkd_deploy.pipelines.teacher import check_expected, obtain_teacher, teacher_key

QUIET = Console(quiet=True)


def summary(mean_ap: float, nd_score: float) -> dict[str, Any]:
    return {"present": {"mean_ap": mean_ap, "nd_score": nd_score}, "frames": {"evaluated": 40, "of": 160}}


def check(expected: TeacherExpectation | None, mean_ap: float, nd_score: float) -> None:
    check_expected(expected, summary(mean_ap, nd_score), Path("teacher.safetensors"), Path("kept.json"))


def test_a_teacher_as_good_as_expected_passes() -> None:
    check(None, 0.0, 0.0)
    check(TeacherExpectation(mAP=0.6, NDS=0.5), 0.6, 0.5)
    check(TeacherExpectation(mAP=0.6), 0.7, 0.0)
    check(TeacherExpectation(NDS=0.3, tolerance=0.1), 0.0, 0.2)  # 0.3 - 0.1 is 0.19999999999999998
    check(TeacherExpectation(NDS=0.8, tolerance=0.1), 0.0, 0.7)  # 0.8 - 0.1 is 0.7000000000000001


def test_a_weaker_one_is_refused_with_figures_and_causes() -> None:
    with pytest.raises(ArtifactError) as error:
        check(TeacherExpectation(mAP=0.6, NDS=0.5, tolerance=0.01), 0.4123, 0.491)
    assert error.value.exit_code == 5
    told = str(error.value)
    assert "mAP 0.4123, expected at least 0.6 (tolerance 0.01), on 40 of 160 validation frames" in told
    assert "NDS" not in told
    for word in ("teacher.safetensors", "kept.json", "Nothing was distilled", "teacher.checkpoint", "data.sweeps"):
        assert word in told
    with pytest.raises(
        ArtifactError, match=r"mAP 0\.1000, expected at least 0\.6, NDS 0\.2000, expected at least 0\.5"
    ):
        check(TeacherExpectation(mAP=0.6, NDS=0.5), 0.1, 0.2)


SMALL = ("data.synthetic={profile: tiny, train_scenes: 1, val_scenes: 1, seed: 0}", "student.train.epochs=1")


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def quickstart(root: Path, *overrides: str) -> LoadedRecipe:
    return load_recipe("quickstart", [f"data.root={root}", *SMALL, *overrides])


def test_nothing_is_trained_under_a_weak_teacher(tiny_world: Path, in_tmp: Path) -> None:
    """The shipped teacher, asked for more than it can do on this world."""
    overrides = [f"data.root={tiny_world}", *SMALL, "teacher.expect={NDS: 0.1, mAP: 0.99}"]
    with pytest.raises(ArtifactError, match=r"mAP 0\.\d{4}, expected at least 0\.99, on 4 of 4 validation frames"):
        distill(Path("quickstart"), overrides, run_dir=in_tmp / "run", resume=False, dry_run=False, console=QUIET)
    assert not (in_tmp / "run" / "checkpoints").exists()
    assert not (in_tmp / "run" / "events.jsonl").exists()


def test_a_part_of_the_split_is_measured_once(tiny_world: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[list[str]] = []
    evaluate = stage.evaluate_detector

    def note(detector: Any, samples: Any, *args: Any) -> dict[str, Any]:
        measured.append([sample.token for sample in samples])
        return evaluate(detector, samples, *args)

    monkeypatch.setattr(stage, "evaluate_detector", note)
    for overrides in (["teacher.expect={mAP: 0.1, frames: 2}"], ["teacher.expect={NDS: 0.1, frames: 2}"]):
        part = obtain_teacher(quickstart(tiny_world, *overrides), tiny_world, QUIET)
    assert part.summary["frames"] == {"evaluated": 2, "of": 4}
    whole = obtain_teacher(quickstart(tiny_world, "teacher.expect.mAP=0.1"), tiny_world, QUIET)
    assert whole.summary["frames"] == {"evaluated": 4, "of": 4}
    without = obtain_teacher(quickstart(tiny_world, "teacher.expect=null"), tiny_world, QUIET)
    assert without.summary == whole.summary
    assert [len(tokens) for tokens in measured] == [2, 4]
    assert measured[0] == [measured[1][0], measured[1][3]]  # both ends of the split
    kept = list((in_tmp / "runs" / "quickstart" / "teacher-eval").iterdir())
    assert len(kept) == 2
    assert {read_json(path, "kept")["frames"]["evaluated"] for path in kept} == {2, 4}


@pytest.mark.parametrize("reading", ["data.sweeps=2", "data.sensors=lidar", "data.val_split=train"])
def test_other_frames_are_another_measurement_and_another_teacher(tiny_world: Path, in_tmp: Path, reading: str) -> None:
    plain, other = quickstart(tiny_world, "teacher.expect=null"), quickstart(tiny_world, "teacher.expect=null", reading)
    assert teacher_key(plain, tiny_world) != teacher_key(other, tiny_world)
    assert teacher_key(plain, tiny_world) == teacher_key(quickstart(tiny_world, "data.sweeps=0"), tiny_world)
    for loaded in (plain, other):
        obtain_teacher(loaded, tiny_world, QUIET)
    assert len(list((in_tmp / "runs" / "quickstart" / "teacher-eval").iterdir())) == 2
