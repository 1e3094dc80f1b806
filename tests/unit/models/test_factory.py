"""Building detectors: seeds, and ImageNet weights for the backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.factory import build_detector, load_backbone

MakeConfig = Callable[..., ModelConfig]


@pytest.fixture
def detector(tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> FusionDetector:
    return build_detector(tiny_model_config(), tiny_spec, seed=0)


def imagenet(detector: FusionDetector) -> dict[str, Tensor]:
    """A state dict as torchvision publishes it: the backbone's keys and the classifier's."""
    weights = {
        key: torch.full_like(value, number % 7 + 1) for number, (key, value) in
        enumerate(detector.img_backbone.state_dict().items())
    }  # fmt: skip
    return {**weights, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)}


def test_weights_depend_on_the_seed_alone(tiny_model_config: MakeConfig, tiny_spec: GraphSpec) -> None:
    torch.manual_seed(11)
    untouched = torch.rand(3)
    torch.manual_seed(11)
    first = build_detector(tiny_model_config(), tiny_spec, seed=5).state_dict()
    assert torch.equal(torch.rand(3), untouched)
    torch.manual_seed(99)
    second = build_detector(tiny_model_config(), tiny_spec, seed=5).state_dict()
    other = build_detector(tiny_model_config(), tiny_spec, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["img_backbone.conv1.weight"], other["img_backbone.conv1.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_weights_load_and_the_classifier_stays_out(
    tmp_path: Path, detector: FusionDetector, tiny_model_config: MakeConfig, tiny_spec: GraphSpec, suffix: str
) -> None:
    weights, path = imagenet(detector), tmp_path / f"resnet10{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    config = tiny_model_config(camera={"pretrained": str(path)})
    loaded = build_detector(config, tiny_spec, seed=0).img_backbone.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)


def test_older_files_without_batch_counters_load(tmp_path: Path, detector: FusionDetector) -> None:
    """PyTorch before 0.4.1, with which torchvision's published weights were made, did not count batches."""
    weights = {key: value for key, value in imagenet(detector).items() if not key.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "old.pth")
    load_backbone(detector, tmp_path / "old.pth")
    loaded = detector.img_backbone.state_dict()
    assert torch.equal(loaded["layer4.0.bn2.running_var"], weights["layer4.0.bn2.running_var"])
    assert loaded["bn1.num_batches_tracked"] == 0


def test_every_differing_key_is_named(tmp_path: Path, detector: FusionDetector) -> None:
    weights = imagenet(detector)
    del weights["conv1.weight"], weights["layer2.0.downsample.0.weight"]
    weights["layer5.0.conv1.weight"] = torch.zeros(1)
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ArtifactError) as error:
        load_backbone(detector, tmp_path / "other.pth")
    assert str(error.value) == (
        f"{tmp_path / 'other.pth'} does not fit the image backbone: missing ['conv1.weight', "
        "'layer2.0.downsample.0.weight'], unexpected ['layer5.0.conv1.weight'], other shape ['layer1.0.conv1.weight']"
    )
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_another_width_is_refused(tmp_path: Path, detector: FusionDetector) -> None:
    weights = imagenet(detector)
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    torch.save(weights, tmp_path / "wide.pth")
    with pytest.raises(
        ArtifactError, match=r"missing \[\], unexpected \[\], other shape \['layer1\.0\.conv1\.weight'\]"
    ):
        load_backbone(detector, tmp_path / "wide.pth")


def test_a_missing_file_is_named(tmp_path: Path, detector: FusionDetector) -> None:
    with pytest.raises(ArtifactError, match=r"pretrained backbone not found: .*gone\.pth"):
        load_backbone(detector, tmp_path / "gone.pth")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, detector: FusionDetector, name: str) -> None:
    path = tmp_path / name
    weights = imagenet(detector)
    if name.endswith(".pth"):
        torch.save(weights, path)
    else:
        save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=rf"{name} .*damaged"):
        load_backbone(detector, path)
