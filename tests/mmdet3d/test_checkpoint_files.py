"""Checkpoints as mmengine's own Runner writes them, read without mmengine's classes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.recorded import disagreements, recorded_facts, records_rgb
from bevkd_deploy.models.weights_file import read_weights

CLASSES = BevFusionGeometry().classes

#: What the Runner writes down of it is what `recorded` must understand; the values are those of BEVFusion's file.
MODEL_LINES = {
    "data_preprocessor": {
        "bgr_to_rgb": False,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "voxelize_cfg": {
            "max_num_points": 10,
            "point_cloud_range": [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
            "voxel_size": [0.075, 0.075, 0.2],
        },
    },
    "view_transform": {"image_size": [256, 704], "downsample": 2},
    "bbox_head": {"test_cfg": {"out_size_factor": 8, "nms_type": None}},
}


class Points(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Four samples under the name that the Runner asks datasets for."""

    def __init__(self) -> None:
        self.metainfo = {"classes": CLASSES, "palette": [(1, 2, 3)], "version": "v1.0-trainval"}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": torch.full((2,), float(index))}


@pytest.fixture(scope="module")
def trained(mmdet3d: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after two epochs of mmengine's Runner with schedulers, gradient clipping and EMA."""
    from mmengine.config import Config
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Network(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, inputs: list[Tensor], mode: str = "tensor") -> dict[str, Tensor]:
            return {"loss": self.fc(torch.stack(list(inputs))).square().sum()}

    folder = tmp_path_factory.mktemp("runner")
    settings: dict[str, Any] = {
        "train_dataloader": {
            "dataset": Points(), "batch_size": 2, "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
        },
        "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 1e-3}, "clip_grad": {"max_norm": 35}},
        "param_scheduler": [{"type": "LinearLR", "start_factor": 0.3, "by_epoch": False, "begin": 0, "end": 5}],
        "train_cfg": {"by_epoch": True, "max_epochs": 2},
        "custom_hooks": [{"type": "EMAHook"}],
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        "default_scope": "mmengine",
        "log_level": "ERROR",
    }  # fmt: skip
    config = Config({"class_names": list(CLASSES), "model": MODEL_LINES, "work_dir": str(folder)})
    Runner(model=Network(), work_dir=str(folder), cfg=config, **settings).train()
    return folder / "epoch_2.pth"


@pytest.mark.parametrize("published", [False, True], ids=["as saved", "as publish_model saves"])
def test_a_checkpoint_of_the_runner_is_read_whole(trained: Path, tmp_path: Path, published: bool) -> None:
    expected = torch.load(trained, map_location="cpu", weights_only=False)
    path = trained
    if published:
        path = tmp_path / "published.pth"
        torch.save(expected, path, _use_new_zipfile_serialization=False)
    file = read_weights(path)
    assert list(file.state) == list(expected["state_dict"])
    assert all(torch.equal(file.state[key], value) for key, value in expected["state_dict"].items())
    assert file.others == ("ema_state_dict", "message_hub", "optimizer", "param_schedulers")
    assert "mmengine.logging.history_buffer.HistoryBuffer" in file.passed_over
    assert file.meta["cfg"] == expected["meta"]["cfg"]


def test_the_runners_configuration_text_is_understood(trained: Path) -> None:
    meta = read_weights(trained).meta
    facts = {fact.name: fact.value for fact in recorded_facts({}, meta)}
    assert facts == {
        "classes": CLASSES,
        "range_m": (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
        "voxel_size_m": (0.075, 0.075, 0.2),
        "max_points": 10,
        "image_size_px": (256, 704),
        "image mean": (123.675, 116.28, 103.53),
        "image std": (58.395, 57.12, 57.375),
        "bev_stride": 8,
        "camera_downsample": 2,
    }
    assert disagreements(recorded_facts({}, meta), BevFusionGeometry()) == []
    assert records_rgb(meta) is False
