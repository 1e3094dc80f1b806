"""What the mmdet3d adapter says where mmdet3d is not installed. The adapter itself is tested in tests/mmdet3d."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bevkd_deploy.contracts.errors import CannotRunHere
from bevkd_deploy.teachers.mmdet3d_model import build_mmdet3d_teacher


@pytest.mark.skipif(importlib.util.find_spec("mmdet3d") is not None, reason="mmdet3d is installed")
def test_without_mmdet3d_the_adapter_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CannotRunHere, match="make mmdet3d") as raised:
        build_mmdet3d_teacher(tmp_path / "config.py", None, ())
    assert "bevkd-deploy[mmdet3d]" in str(raised.value)
