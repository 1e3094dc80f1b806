"""Batches of the tiny world for a student and a wider teacher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import AugmentationConfig
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.source import open_split

CAMERAS = ("CAM_FRONT", "CAM_BACK")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order: results are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher_config(tiny_model_config: Callable[..., ModelConfig]) -> ModelConfig:
    return tiny_model_config(width=12)


@pytest.fixture(scope="session")
def make_dataset(tiny_world: Path, tiny_spec: GraphSpec, teacher_config: ModelConfig) -> Callable[..., FrameDataset]:
    """The four training frames of the tiny world for both networks."""
    samples = open_split(DataConfig(source="nuscenes", root="unused"), tiny_world, "train")

    def make(augmentation: AugmentationConfig | None = None, teacher: GraphSpec | None = None) -> FrameDataset:
        specs = {"student": tiny_spec, "teacher": teacher or teacher_config.graph_spec(CAMERAS)}
        return FrameDataset(
            samples, specs, target_of="student", min_radius_cells=1, augmentation=augmentation, cache_sensors=True
        )

    return make


@pytest.fixture(scope="session")
def batch(make_dataset: Callable[..., FrameDataset]) -> dict[str, Any]:
    """Two frames with objects."""
    dataset = make_dataset()
    made = collate([dataset[0], dataset[3]])
    assert made["targets"]["mask"][..., 0].sum() > 4
    return made


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What gloo ranks "0" and "1" got in two_process_runs.py, and one process with the "whole" batch."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = Path(__file__).with_name("two_process_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", script, folder], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("whole", "0", "1")}


@pytest.fixture(scope="session")
def job(
    tiny_world: Path, teacher_config: ModelConfig, tiny_model_config: Callable[..., ModelConfig]
) -> Callable[..., dict[str, Any]]:
    """A factory of jobs for `fit_process.py`."""
    models = {"student": tiny_model_config(), "teacher": teacher_config}
    described = {name: model.model_dump(mode="json") for name, model in models.items()}

    def make(folder: Path, train: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {
            "world": str(tiny_world),
            "folder": str(folder),
            "train": train,
            "distill": None,
            **described,
            **options,
        }

    return make
