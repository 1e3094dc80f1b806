"""Checkpoints: what is written comes back, and anything else is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.checkpoint import load_detector, save_detector
from bevkd_deploy.models.factory import build_detector

MakeConfig = Callable[..., ModelConfig]


@pytest.fixture
def saved(tmp_path: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> Path:
    config = tiny_model_config()
    return save_detector(tmp_path / "last.safetensors", build_detector(config, tiny_spec, 1), config, {"role": "x"})


def test_weights_come_back_bit_for_bit(saved: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    config = tiny_model_config()
    written = build_detector(config, tiny_spec, 1).state_dict()
    detector = build_detector(config, tiny_spec, 2)
    assert load_detector(saved, detector, config) == sha256_file(saved)
    assert all(torch.equal(value, written[key]) for key, value in detector.state_dict().items())
    assert [path.name for path in saved.parent.iterdir()] == ["last.safetensors"]


def test_the_model_and_the_notes_travel_inside(saved: Path, tiny_model_config: MakeConfig) -> None:
    with safe_open(saved, framework="pt") as handle:
        header = json.loads(handle.metadata()["bevkd"])
    assert header["notes"] == {"role": "x"}
    assert ModelConfig.model_validate(header["model"]) == tiny_model_config()


def test_another_model_is_told_its_settings_and_keys(
    saved: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec
) -> None:
    other = tiny_model_config(width=12, camera={"backbone": "resnet18"})
    detector = build_detector(other, tiny_spec, 0)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(ArtifactError) as error:
        load_detector(saved, detector, other)
    for line in (
        f"checkpoint {saved} does not fit this model:",
        "setting: camera.backbone was resnet10 in training, is resnet18 here",
        "setting: lidar.channels was 8 in training, is 12 here",
        "setting: bev.block_channels was [8, 8] in training, is [12, 12] here",
        "missing: img_backbone.layer1.1.conv1.weight [4, 4, 3, 3]",
        "shape: pts_voxel_encoder.pfn_layers.0.0.weight is [8, 10, 1, 1] in the file, [12, 10, 1, 1] in the model",
    ):
        assert line in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_settings_count_even_where_every_shape_fits(
    saved: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec
) -> None:
    config = tiny_model_config()
    first, last = config.camera.depth_m
    farther = config.model_copy(update={"camera": config.camera.model_copy(update={"depth_m": (first, last + 5)})})
    with pytest.raises(ArtifactError, match="setting: camera.depth_m was"):
        load_detector(saved, build_detector(farther, tiny_spec, 2), farther)
    fewer = config.model_copy(update={"head": config.head.model_copy(update={"top_k": config.head.top_k - 1})})
    load_detector(saved, build_detector(fewer, tiny_spec, 2), fewer)


def test_a_key_too_many_is_named(saved: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    config = tiny_model_config()
    tensors = dict(build_detector(config, tiny_spec, 0).state_dict())
    save_file({**tensors, "extra.weight": torch.zeros(2)}, saved)  # and no header
    with pytest.raises(ArtifactError, match=r"unexpected: extra\.weight \[2\]"):
        load_detector(saved, build_detector(config, tiny_spec, 0), config)


@pytest.mark.parametrize("content", [lambda whole: whole[:-100], lambda whole: whole[:5], lambda whole: b"x" * 500])
def test_a_damaged_file_is_refused(
    saved: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec, content: Callable[[bytes], bytes]
) -> None:
    config = tiny_model_config()
    saved.write_bytes(content(saved.read_bytes()))
    with pytest.raises(ArtifactError, match=r"last\.safetensors is damaged or no safetensors file"):
        load_detector(saved, build_detector(config, tiny_spec, 0), config)


def test_hashes_and_missing_files(saved: Path, tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    config = tiny_model_config()
    detector = build_detector(config, tiny_spec, 0)
    load_detector(saved, detector, config, expected_sha256=sha256_file(saved))
    with pytest.raises(ArtifactError) as error:
        load_detector(saved, detector, config, expected_sha256="ab" * 32)
    assert f"has sha256 {sha256_file(saved)}, the recipe expects {'ab' * 32}" in str(error.value)
    with pytest.raises(ArtifactError, match=r"checkpoint not found: .*gone\.safetensors"):
        load_detector(saved.parent / "gone.safetensors", detector, config)
