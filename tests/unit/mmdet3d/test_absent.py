"""The plugin where mmdet3d is not installed."""

from __future__ import annotations

import importlib
import sys

import pytest

from bevkd_deploy.contracts.errors import CannotRunHere


def test_importing_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("mmdet3d", "bevkd_deploy.mmdet3d"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmdet3d", None)
    with pytest.raises(CannotRunHere, match=r"mmdet3d is not installed.*bevkd-deploy\[mmdet3d\].*make mmdet3d"):
        importlib.import_module("bevkd_deploy.mmdet3d")
