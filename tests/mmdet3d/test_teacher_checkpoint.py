"""Checkpoints of mmengine's Runner: read without running them, every key accounted for."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bevkd_deploy.contracts.errors import ArtifactError, UsageError  # noqa: E402
from bevkd_deploy.contracts.files import sha256_file  # noqa: E402
from bevkd_deploy.models.weights_file import read_weights  # noqa: E402
from bevkd_deploy.teachers.mmdet3d_checkpoint import classes_of, load_into  # noqa: E402
from bevkd_deploy.teachers.mmdet3d_model import build_mmdet3d_teacher  # noqa: E402

POINTPILLARS = "pointpillars/pointpillars_hv_secfpn_sbn-all_8xb4-2x_nus-3d.py"

#: As this config names them.
CLASSES = [
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
]  # fmt: skip


@pytest.fixture(scope="module")
def config(mmdet3d: ModuleType) -> Path:
    return Path(mmdet3d.__file__).parent / ".mim" / "configs" / POINTPILLARS


@pytest.fixture
def saved(config: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """What a training of PointPillars leaves: beside the weights logs, NumPy numbers and an optimizer."""
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.update(np.float64(3.0))
    torch.manual_seed(3)
    state = build_mmdet3d_teacher(config, None, ()).state_dict()
    content = {
        "meta": {"epoch": 24, "cfg": "model = ...", "dataset_meta": {"classes": CLASSES}, "seed": np.int64(7)},
        "state_dict": state,
        "message_hub": {
            "log_scalars": OrderedDict(loss=history),
            "runtime_info": OrderedDict(iter=3, rate=np.float32(0.1), seen=np.array([1, 2]), last=np.bool_(True)),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    return content, tmp_path / "epoch_24.pth"


def test_a_checkpoint_of_the_runner_is_loaded(config: Path, saved: tuple[dict[str, Any], Path]) -> None:
    content, path = saved
    torch.save(content, path)
    torch.manual_seed(4)
    teacher = build_mmdet3d_teacher(config, path, (), sha256=sha256_file(path))
    assert teacher.sha256 == sha256_file(path)
    state = teacher.state_dict()
    assert state.keys() == content["state_dict"].keys() and len(state) == 132
    assert all(torch.equal(state[key], value) for key, value in content["state_dict"].items())


class _Versioned(torch.nn.Module):
    """As mmdet3d's sparse convolutions, it turns kernels of another version round."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].T
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_of_modules_survive_also_from_inside_a_parallel_wrapper(mmdet3d: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), _Versioned())
    # A plain dict has lost them; the shapes tell then.
    for state in (model.state_dict(), torch.nn.DataParallel(model).state_dict(), dict(model.state_dict())):
        torch.save(state, path)
        into = torch.nn.Sequential(torch.nn.Linear(2, 3), _Versioned())
        torch.nn.init.zeros_(into[1].weight)
        load_into(into, read_weights(path))
        assert torch.equal(into[1].weight, model[1].weight) and torch.equal(into[0].weight, model[0].weight)


def test_classes_of_a_checkpoint_of_the_older_runner(mmdet3d: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = {"weight": torch.zeros(2)}
    for meta, names in [({"CLASSES": ("car", "bus")}, ("car", "bus")), ({"epoch": 3}, None), ({}, None)]:
        torch.save({"meta": meta, "state_dict": weights}, path)
        assert classes_of(read_weights(path)) == names


def test_every_key_that_does_not_fit_is_named(config: Path, saved: tuple[dict[str, Any], Path]) -> None:
    content, path = saved
    state = content["state_dict"]
    for missing in ("pts_bbox_head.conv_cls.weight", "pts_neck.deblocks.0.0.weight"):
        del state[missing]
    state["pts_bbox_head.conv_reg.bias"] = torch.zeros(5)
    state["student.extra"] = state["img_backbone.conv1.weight"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(ArtifactError) as raised:
        build_mmdet3d_teacher(config, path, ())
    message = str(raised.value)
    for key in (
        "conv_cls.weight",
        "deblocks.0.0.weight",
        "conv_reg.bias",
        "student.extra",
        "img_backbone.conv1.weight",
    ):
        assert key in message
    assert "teacher.config" in message


def test_classes_in_another_order_are_refused(config: Path, saved: tuple[dict[str, Any], Path]) -> None:
    content, path = saved
    content["meta"]["dataset_meta"]["classes"] = CLASSES[::-1]
    torch.save(content, path)
    with pytest.raises(UsageError, match="trained with the classes barrier, traffic_cone"):
        build_mmdet3d_teacher(config, path, ())
