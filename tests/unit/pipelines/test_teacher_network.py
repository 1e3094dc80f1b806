"""What decides a foreign teacher's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.pipelines.teacher_network import config_files, teacher_identity

TOY = Path(__file__).resolve().parents[2] / "fixtures" / "toy.yaml"


def identity(folder: Path, *more: str) -> dict[str, object]:
    teacher = f"teacher={{source: mmdet3d, config: {folder}/config.py, checkpoint: a.pth}}"
    return teacher_identity(load_recipe(TOY, [teacher, "distill={losses: {heatmap: {weight: 10}}}", *more]))


def test_a_configuration_is_all_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "config.py").write_text("_base_ = ['base/model.py', 'mmdet3d::_base_/default_runtime.py']\nx = 1\n")
    (tmp_path / "base" / "model.py").write_text("_base_ = './more.py'\nraise SystemExit\n")  # never run
    (tmp_path / "base" / "more.py").write_text("y = 2\n")
    assert [path.name for path in config_files(tmp_path / "config.py")] == ["config.py", "model.py", "more.py"]
    before = identity(tmp_path)
    assert identity(tmp_path) == before
    (tmp_path / "base" / "more.py").write_text("y = 3\n")
    assert identity(tmp_path) != before


def test_options_of_the_configuration_count(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("x = 1\n")
    assert identity(tmp_path, "teacher.cfg_options=[a.b=1]") != identity(tmp_path)
    assert identity(tmp_path, "teacher.bev_stride=4") != identity(tmp_path)
    assert identity(tmp_path, "teacher.precision=bf16") == identity(tmp_path)  # has a place of its own in the key


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"teacher configuration not found: .*config.py; set teacher.config=FILE"):
        identity(tmp_path)


@pytest.mark.parametrize("text", ["_base_ = [", "_base_ = [name + '.py']"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ArtifactError, match="cannot be read"):
        identity(tmp_path)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text("x = 1\n")
    (tmp_path / "config.py").write_text("_base_ = ['a/model.py', 'b/model.py']\n")
    before = identity(tmp_path)
    (tmp_path / "a" / "model.py").write_text("x = 2\n")
    assert identity(tmp_path) != before
