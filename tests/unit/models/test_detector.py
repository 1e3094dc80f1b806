"""The whole detector: shapes, gradients, batches, and the exported view of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.detector import INPUT_NAMES, DeployedStudent, FusionDetector, parameter_count
from bevkd_deploy.models.factory import build_detector

MakeInputs = Callable[[GraphSpec, int], dict[str, Tensor]]


@pytest.fixture
def detector(
    tiny_model_config: Callable[..., ModelConfig], tiny_spec: GraphSpec, stir_norms: Callable[[nn.Module], nn.Module]
) -> FusionDetector:
    made = build_detector(tiny_model_config(), tiny_spec, seed=0)
    stir_norms(made)
    return made


def test_inputs_are_the_contracts_in_order(tiny_spec: GraphSpec) -> None:
    assert tuple(tensor.name for tensor in tiny_spec.inputs()) == INPUT_NAMES


def test_every_parameter_learns_from_a_batch(
    detector: FusionDetector, tiny_spec: GraphSpec, make_inputs: MakeInputs
) -> None:
    detector.train()
    maps = detector(**make_inputs(tiny_spec, 2))
    assert {tuple(value.shape[:1] + value.shape[2:]) for value in maps.values()} == {(2, 12, 16)}
    sum(value.pow(2).sum() for value in maps.values()).backward()
    idle = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert parameter_count(detector) == sum(p.numel() for p in detector.parameters())


def test_a_batch_equals_its_frames(detector: FusionDetector, tiny_spec: GraphSpec, make_inputs: MakeInputs) -> None:
    detector.eval()
    inputs = make_inputs(tiny_spec, 2)
    with torch.no_grad():
        together = detector(**inputs)
        for row in range(2):
            alone = detector(**{name: value[row : row + 1] for name, value in inputs.items()})
            for name, value in alone.items():
                assert torch.allclose(together[name][row : row + 1], value, atol=1e-5), name
        assert not torch.allclose(together["heatmap"][0], together["heatmap"][1], atol=1e-3)


def test_images_are_normalised_as_imagenet(
    detector: FusionDetector, tiny_spec: GraphSpec, make_inputs: MakeInputs
) -> None:
    seen: list[Tensor] = []
    detector.img_backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    inputs = make_inputs(tiny_spec, 1)
    inputs["images"][0, 1, 5, 9] = torch.tensor([0, 128, 255], dtype=torch.uint8)
    with torch.no_grad():
        detector.eval()(**inputs)
    assert seen[0].shape == (2, 3, 32, 64)
    # torchvision: (value / 255 - mean) / std with RGB means (0.485, 0.456, 0.406), stds (0.229, 0.224, 0.225)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert seen[0][1, :, 5, 9].tolist() == pytest.approx(expected, abs=1e-5)


def test_both_sensors_reach_the_head(detector: FusionDetector, tiny_spec: GraphSpec, make_inputs: MakeInputs) -> None:
    detector.train()  # batch statistics keep a random network's signal from fading
    inputs = make_inputs(tiny_spec, 1)
    with torch.no_grad():
        heatmap = detector(**inputs)["heatmap"]
        for name in ("images", "pillars"):
            changed = {**inputs, name: torch.zeros_like(inputs[name])}
            assert (detector(**changed)["heatmap"] - heatmap).abs().max() > 0.01, name


def test_the_exported_view_is_the_detector_without_a_batch(
    detector: FusionDetector, tiny_spec: GraphSpec, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(tiny_spec, 1)
    student = DeployedStudent(detector).eval()
    with torch.no_grad():
        exported = student(*[inputs[name][0] for name in INPUT_NAMES])
        expected = detector.decode(detector(**inputs))
    for made, wanted, tensor in zip(exported, expected, tiny_spec.outputs(), strict=True):
        assert tuple(made.shape) == tensor.shape
        assert str(made.dtype) == f"torch.{tensor.dtype}"
        assert torch.equal(made, wanted[0])


def test_normalisation_constants_travel_in_no_checkpoint(detector: FusionDetector) -> None:
    assert not [key for key in detector.state_dict() if key.startswith("image_")]
