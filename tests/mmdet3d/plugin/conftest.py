"""A small recipe on the synthetic world, and the shipped configurations of examples/mmdet3d with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLES = REPOSITORY / "examples" / "mmdet3d"

Configure = Callable[..., Any]


def small_model(width: int) -> dict[str, Any]:
    return {
        "camera": {
            "backbone": "resnet10", "base_channels": 4, "image_size_px": [64, 128], "feature_stride": 8,
            "neck_channels": width, "bev_channels": width, "depth_m": [1.0, 33.0], "depth_bins": 8,
        },
        "lidar": {
            "range_m": [-32.0, -24.0, -5.0, 32.0, 24.0, 3.0], "pillar_size_m": 1.0, "max_pillars": 1500,
            "max_points": 8, "channels": width,
        },
        "bev": {
            "stride": 1, "heights_m": [-1.0, 0.5], "fused_channels": width, "block_channels": [width, width],
            "block_layers": [1, 1], "neck_channels": width,
        },
        "head": {"channels": width, "top_k": 50, "min_radius_cells": 1},
    }  # fmt: skip


@pytest.fixture(scope="session")
def plugin(mmdet3d: ModuleType) -> ModuleType:
    """Our registrations."""
    import bevkd_deploy.mmdet3d

    return bevkd_deploy.mmdet3d


@pytest.fixture(scope="session")
def recipe(plugin: ModuleType, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 8 channels, a teacher of 12 with weights of its own, and three distillation terms."""
    from bevkd_deploy.contracts.recipe_loader import load_recipe
    from bevkd_deploy.models.checkpoint import save_detector
    from bevkd_deploy.models.factory import build_detector

    folder = tmp_path_factory.mktemp("plugin")
    train = {"epochs": 1, "augmentation": {"flip_x": True, "flip_y": True, "rotation_rad": 0.4, "scale": [0.95, 1.05]}}
    content = {
        "schema": "bevkd.recipe/1",
        "name": "plugin_test",
        "description": "small networks under mmengine's Runner",
        "data": {
            "source": "mmdet3d_infos",
            "root": str(converted),
            "train_infos": "nuscenes_infos_train.pkl",
            "val_infos": "nuscenes_infos_val.pkl",
        },
        "teacher": {"model": small_model(12), "checkpoint": "teacher.safetensors"},
        "student": {"model": small_model(8), "train": train},
        "distill": {
            "losses": {
                "heatmap": {"weight": 10.0},
                "feature": {"weight": 10.0},
                "pairs": [{"loss": "attention", "weight": 5.0}],
            }
        },
        "export": {},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    loaded = load_recipe(path).recipe
    teacher = build_detector(loaded.teacher.native_model, loaded.teacher_spec(), 7)
    save_detector(folder / "teacher.safetensors", teacher, loaded.teacher.native_model)
    return path


@contextmanager
def environment(recipe: Path, root: Path) -> Iterator[dict[str, str]]:
    """The two variables that the examples read."""
    variables = {"BEVKD_RECIPE": str(recipe), "BEVKD_DATA": f"{root}/"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield {**os.environ, **variables}


@pytest.fixture
def configure(recipe: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """A shipped configuration with the small recipe: in this process, one frame a batch, every step logged."""
    monkeypatch.chdir(tmp_path)  # a run marks itself as the latest of the working directory

    def make(name: str, *, epochs: int = 1, **changes: Any) -> Any:
        from mmengine.config import Config

        with environment(recipe, converted):
            config = Config.fromfile(EXAMPLES / f"{name}.py")
        config.work_dir = str(tmp_path / "work")
        config.experiment_name = f"{tmp_path.name}_{name}_{id(config)}"
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            loader.num_workers, loader.persistent_workers = 0, False
        config.train_dataloader.batch_size = 1
        config.train_dataloader.dataset.pipeline[-1].augment = False
        config.train_cfg.update(max_epochs=epochs, val_interval=epochs + 1)
        config.param_scheduler[0].total_steps = epochs
        config.default_hooks.logger.interval = 1
        config.merge_from_dict(changes)
        return config

    return make
