"""What tests of several packages share: a tiny dataset, the real keyframe, and small models on a non-square grid."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import BevConfig, CameraConfig, HeadConfig, LidarConfig, ModelConfig

#: Two of the six cameras: enough to tell their order.
TINY_CAMERAS = ("CAM_FRONT", "CAM_BACK")

#: Outside the repository, beside the checkout; its licence keeps it out.
_KEYFRAME = Path(__file__).resolve().parents[2] / "../shared/data/nuscenes_keyframe"


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset of one training and one validation scene. Read only: copy it to break it."""
    from bevkd_deploy.data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("tiny") / "world"
    write_dataset(root, profile="tiny", train_scenes=1, val_scenes=1, seed=0)
    return root


@pytest.fixture(scope="session")
def keyframe_root() -> Path:
    """The folder of one real nuScenes keyframe."""
    if not _KEYFRAME.is_dir():
        pytest.skip("the real nuScenes keyframe is not on this machine")
    return _KEYFRAME.resolve()


@pytest.fixture(scope="session")
def tiny_model_config() -> Callable[..., ModelConfig]:
    """A factory of small detectors: BEV of 12 rows and 16 columns of 2 m; keywords change what a test is about."""

    def make(
        *,
        width: int = 8,
        range_m: tuple[float, ...] = (-16.0, -12.0, -3.0, 16.0, 12.0, 3.0),
        pillar_size_m: float = 1.0,
        stride: int = 2,
        lidar: dict[str, Any] | None = None,
        camera: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
    ) -> ModelConfig:
        camera_defaults = {
            "backbone": "resnet10",
            "base_channels": 4,
            "image_size_px": (32, 64),
            "feature_stride": 8,
            "neck_channels": width,
            "bev_channels": width,
            "depth_m": (1.0, 25.0),
            "depth_bins": 6,
        }
        return ModelConfig(
            camera=CameraConfig(**{**camera_defaults, **(camera or {})}),
            lidar=LidarConfig(
                range_m=range_m,
                pillar_size_m=pillar_size_m,
                channels=width,
                **{"max_pillars": 300, "max_points": 6, **(lidar or {})},
            ),
            bev=BevConfig(
                stride=stride,
                heights_m=(-1.0, 1.0),
                fused_channels=width,
                block_channels=(width, width),
                block_layers=(1, 1),
                neck_channels=width,
            ),
            head=HeadConfig(**{"channels": width, "top_k": 20, **(head or {})}),
        )

    return make


@pytest.fixture(scope="session")
def tiny_spec(tiny_model_config: Callable[..., ModelConfig]) -> GraphSpec:
    """Graph contract of the default tiny detector with two cameras."""
    return tiny_model_config().graph_spec(TINY_CAMERAS)


@pytest.fixture(scope="session")
def write_rig_world() -> Callable[..., Path]:
    """A factory of small datasets with any cameras; see rig_world.py."""
    spec = importlib.util.spec_from_file_location("rig_world", Path(__file__).with_name("rig_world.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[..., Path] = module.write_rig_world
    return make
