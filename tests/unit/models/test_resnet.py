"""The backbone speaks torchvision's language, and its maps have the strides they are named for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from bevkd_deploy.models.resnet import DEPTHS, BasicBlock, Bottleneck, ResNet


def torchvision_keys(depths: tuple[int, ...], convolutions: int) -> list[str]:
    """State-dict keys of torchvision's ResNets without `fc`, by its naming rule; `convolutions` a block."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    keys = ["conv1.weight", *norm("bn1")]
    for layer, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f"layer{layer}.{block}"
            for number in range(1, convolutions + 1):
                keys += [f"{prefix}.conv{number}.weight", *norm(f"{prefix}.bn{number}")]
            if block == 0 and (layer > 1 or convolutions == 3):  # where the stride or the width changes
                keys += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return keys


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters"),
    # torchvision's published counts (11,689,512, 21,797,672 and 25,557,032) less the classifier's 513,000 or 2,049,000.
    [("resnet18", 2, 11_176_512), ("resnet34", 2, 21_284_672), ("resnet50", 3, 23_508_032)],
)
def test_keys_and_sizes_are_torchvisions(name: str, convolutions: int, parameters: int) -> None:
    with torch.device("meta"):
        model = ResNet(name, 64, 8)
    assert list(model.state_dict()) == torchvision_keys(DEPTHS[name], convolutions)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(torchvision_keys((2, 2, 2, 2), 2)) == 120  # the 122 of resnet18 without fc.weight and fc.bias


@pytest.mark.parametrize(("first_stride", "strides"), [(4, (4, 8, 16, 32)), (8, (8, 16, 32)), (16, (16, 32))])
def test_maps_have_their_strides(first_stride: int, strides: tuple[int, ...]) -> None:
    model = ResNet("resnet10", 4, first_stride)
    maps = model(torch.zeros(2, 3, 64, 96))
    assert model.out_channels == [4 * stride // 4 for stride in strides]
    assert [tuple(x.shape) for x in maps] == [(2, stride, 64 // stride, 96 // stride) for stride in strides]


@pytest.mark.parametrize(("stride", "channels"), [(1, 3), (2, 5)])
def test_a_block_is_two_convolutions_and_a_shortcut(
    stride: int, channels: int, stir_norms: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    block = BasicBlock(3, channels, stride)
    stir_norms(block).eval()
    weights = block.state_dict()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, scale, shift = (
            weights[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    x = torch.randn(2, 3, 6, 8)
    inner = torch.relu(norm(functional.conv2d(x, weights["conv1.weight"], stride=stride, padding=1), "bn1"))
    shortcut = x
    if stride == 2:
        shortcut = norm(functional.conv2d(x, weights["downsample.0.weight"], stride=2), "downsample.1")
    expected = torch.relu(norm(functional.conv2d(inner, weights["conv2.weight"], padding=1), "bn2") + shortcut)
    with torch.no_grad():
        assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize(("stride", "channels"), [(1, 2), (1, 3), (2, 2)])
def test_a_bottleneck_is_three_convolutions_and_a_shortcut(
    stride: int, channels: int, stir_norms: Callable[[nn.Module], nn.Module]
) -> None:
    """The stride is that of the 3x3 convolution; the shortcut is the input where stride and width allow it."""
    torch.manual_seed(0)
    block = Bottleneck(8, channels, stride)
    stir_norms(block).eval()
    weights = block.state_dict()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, scale, shift = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, scale, shift)

    x = torch.randn(2, 8, 6, 8)
    assert (block.downsample is None) == (stride == 1 and channels == 2)
    inner = torch.relu(norm(functional.conv2d(x, weights["conv1.weight"]), "bn1"))
    inner = torch.relu(norm(functional.conv2d(inner, weights["conv2.weight"], stride=stride, padding=1), "bn2"))
    shortcut = x
    if block.downsample is not None:
        shortcut = norm(functional.conv2d(x, weights["downsample.0.weight"], stride=stride), "downsample.1")
    expected = torch.relu(norm(functional.conv2d(inner, weights["conv3.weight"]), "bn3") + shortcut)
    with torch.no_grad():
        assert torch.allclose(block(x), expected, atol=1e-5)


def test_the_maps_of_resnet50_are_four_times_as_wide() -> None:
    model = ResNet("resnet50", 4, 8).eval()
    assert model.out_channels == [32, 64, 128]
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 32, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)]


def test_the_stem_divides_by_four() -> None:
    model = ResNet("resnet10", 4, 4).eval()
    stages = []
    model.layer1.register_forward_hook(lambda module, inputs, output: stages.append(inputs[0]))
    with torch.no_grad():
        image = torch.rand(1, 3, 32, 64)
        model(image)
        stem = functional.conv2d(image, model.conv1.weight, stride=2, padding=3)
        expected = functional.max_pool2d(torch.relu(stem / (1 + 1e-5) ** 0.5), 3, 2, 1)
    assert torch.allclose(stages[0], expected, atol=1e-5)
