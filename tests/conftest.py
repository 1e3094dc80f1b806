"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Indices of test datasets stay out of the user's cache; commands run by tests inherit the variable."""
    folder = tmp_path_factory.mktemp("index-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "BEVKD_INDEX_CACHE", str(folder))
        yield folder
