"""What users get wrong: each ends with one clear message, the documented exit code, and nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import RECIPES, SMALL, run_bevkd

QUICKSTART = RECIPES / "quickstart.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    run_bevkd(
        "data", "synth", "world", "--profile", "tiny", "--scenes", "2", "--val-scenes", "1", "--seed", "0", cwd=folder
    )
    return folder


def expect_refused(done: Any, *words: str) -> None:
    assert "Traceback" not in done.err, done.err
    for word in words:
        assert word in done.err, f"{word!r} not in:\n{done.err}"


def test_a_typo_names_line_and_suggestion(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    text = (
        QUICKSTART.read_text().replace("feature_stride: 8", "feature_strid: 8", 1).replace("seed: 0", "seed: zero", 1)
    )
    (tmp_path / "typo.yaml").write_text(text)
    done = bevkd("distill", "typo.yaml", cwd=tmp_path, code=2)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "feature_strid:" in row)
    expect_refused(done, f"{line}:", "feature_strid", "Did you mean 'feature_stride'", "seed", "2 errors")
    assert not (tmp_path / "runs").exists()


def test_a_root_that_is_no_dataset(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("miau")
    args = ("data.root=photos", "data.source=nuscenes", "data.synthetic=null")
    done = bevkd("distill", str(QUICKSTART), *args, cwd=tmp_path, code=5)
    expect_refused(done, "photos", "not a nuScenes root")
    done = bevkd("data", "check", "photos", cwd=tmp_path, code=None)
    assert done.code != 0 and "not a nuScenes root" in done.out + done.err


def test_a_folder_that_is_not_the_synthetic_world_is_left_alone(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "thesis.tex").write_text("precious")
    done = bevkd("distill", str(QUICKSTART), *SMALL, cwd=tmp_path, code=5)
    expect_refused(done, "world", "dataset.json")
    assert (tmp_path / "world" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("damage", ["missing image", "truncated image", "missing points", "truncated points"])
def test_broken_sensor_files_are_named(world: Path, tmp_path: Path, damage: str, bevkd: Callable[..., Any]) -> None:
    shutil.copytree(world / "world", tmp_path / "world")
    kind, sensor = damage.split()
    pattern = "samples/CAM_BACK/*.jpg" if sensor == "image" else "samples/LIDAR_TOP/*.bin"
    victim = sorted((tmp_path / "world").glob(pattern))[-1]
    if kind == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7])
    done = bevkd("distill", str(QUICKSTART), *SMALL, cwd=tmp_path, code=5)
    expect_refused(done, victim.name, "truncated" if kind == "truncated" else "cannot be read")
    found = bevkd("data", "check", "world", cwd=tmp_path, code=None)
    assert found.code != 0 and victim.name in found.out


def test_a_checkpoint_of_another_model_names_the_settings(
    world: Path, tmp_path: Path, bevkd: Callable[..., Any]
) -> None:
    shutil.copytree(world / "world", tmp_path / "world")
    other = "teacher.model.bev.block_channels=[32, 64]"
    done = bevkd("distill", str(QUICKSTART), *SMALL, other, cwd=tmp_path, code=5)
    expect_refused(done, "bev.block_channels was [64, 128] in training, is [32, 64] here", "pts_backbone")


def test_a_damaged_checkpoint(world: Path, tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    shutil.copytree(world / "world", tmp_path / "world")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 100)
    args = (f"teacher.checkpoint={tmp_path / 'broken.safetensors'}", "teacher.sha256=null")
    done = bevkd("distill", str(QUICKSTART), *SMALL, *args, cwd=tmp_path, code=5)
    expect_refused(done, "broken.safetensors", "damaged")


def test_a_tap_that_does_not_exist(world: Path, tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    shutil.copytree(world / "world", tmp_path / "world")
    done = bevkd("distill", str(QUICKSTART), *SMALL, "distill.losses.feature.student=pts_nek", cwd=tmp_path, code=2)
    expect_refused(done, "pts_nek", "pts_neck")


def test_commands_without_a_run(tmp_path: Path, bevkd: Callable[..., Any]) -> None:
    for command in (["export", "--trt", "fp16"], ["benchmark"]):
        done = bevkd(*command, cwd=tmp_path, code=5)
        expect_refused(done, "no run", "bevkd distill")
