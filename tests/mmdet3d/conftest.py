"""Tests against mmdet3d itself, in an environment that has it: make test-mmdet3d. Elsewhere they are skipped."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from bevkd_deploy.data.synthetic import Profile, write_dataset

#: A world that turns and moves: three keyframes a scene, with LiDAR turns between them.
PROFILE = Profile("sweeping", (198, 352), 3, 180, 45.0, 42.0, 3)

#: The only place where mmdet3d's converter looks for a dataset, from the working directory.
DATA = Path("data/nuscenes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """mmdet3d and what it imports warn a lot; that is theirs to mend."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def mmdet3d() -> ModuleType:
    """mmdet3d with its datasets and transforms registered; skips where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("mmdet3d")
        from mmdet3d.utils import register_all_modules

        register_all_modules()
    return module


@pytest.fixture(autouse=True)
def same_scope_for_all(mmdet3d: ModuleType) -> None:
    """A Runner leaves its default scope behind, in which the next test's modules are not found."""
    from mmengine.registry import DefaultScope

    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != "mmdet3d":
        DefaultScope.get_instance(f"tests-{time.monotonic_ns()}", scope_name="mmdet3d")


@pytest.fixture(scope="session")
def world(mmdet3d: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset at the place where mmdet3d's converter looks for it."""
    folder = tmp_path_factory.mktemp("mmdet3d")
    return write_dataset(folder / DATA, profile=PROFILE, train_scenes=1, val_scenes=1, seed=4)


@pytest.fixture(scope="session")
def converted(mmdet3d: ModuleType, world: Path) -> Path:
    """The folder of nuscenes_infos_{train,val}.pkl made by mmdet3d's own converter."""
    folder = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(world.parent.parent)
        _script(folder / "nuscenes_converter.py").create_nuscenes_infos(
            str(DATA), "nuscenes", version="v1.0-trainval", max_sweeps=10
        )
        update = _script(folder / "update_infos_to_v2.py")
        for split in ("train", "val"):
            update.update_nuscenes_infos(str(DATA / f"nuscenes_infos_{split}.pkl"), str(DATA))
    return world


def _script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mmdet3d_tools_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
