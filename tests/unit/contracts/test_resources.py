"""Shipped files are found in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd_deploy.contracts import resources
from bevkd_deploy.contracts.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["recipes", "export/targets"])
def test_a_checkout_reads_its_own_folders(name: str) -> None:
    assert resources.resource_dir(name) == ROOT / name


def test_a_wheel_reads_its_copy_and_not_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "bevkd_deploy"
    monkeypatch.setattr(resources, "__file__", str(package / "contracts" / "resources.py"))
    neighbour = tmp_path / "site-packages" / "recipes"
    neighbour.mkdir(parents=True)
    assert resources.resource_dir("recipes") == neighbour
    own = package / "_resources" / "recipes"
    own.mkdir(parents=True)
    assert resources.resource_dir("recipes") == own


def test_a_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "bevkd_deploy" / "contracts" / "resources.py"))
    with pytest.raises(UsageError, match="the folder 'recipes' that ships with bevkd is missing; reinstall"):
        resources.resource_dir("recipes")
