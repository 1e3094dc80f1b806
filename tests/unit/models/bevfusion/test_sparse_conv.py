"""Sparse convolution against a dense one on the same grid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.models.bevfusion import sparse_conv
from bevkd_deploy.models.bevfusion.sparse_conv import (
    SparseConv3d,
    SparseTensor,
    convolve_by_offset,
    convolve_by_output,
)
from bevkd_deploy.models.bevfusion.sparse_sites import Kernel, SparseSites, sort_sites

SHAPE = (7, 6, 5)
SUBMANIFOLD = Kernel((3, 3, 3), padding=(1, 1, 1), submanifold=True)
KERNELS = [
    SUBMANIFOLD,
    Kernel((1, 3, 5), padding=(0, 1, 2), submanifold=True),
    Kernel((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    Kernel((3, 3, 3), (2, 2, 2), (1, 1, 0)),
    Kernel((1, 1, 3), (1, 1, 2)),
    Kernel((2, 3, 2), (1, 2, 3), (0, 2, 1)),
]


def random_cells(frames: int, count: int, seed: int = 0) -> Tensor:
    """Distinct cells [count, 4] in random order, those at the edges among them."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(torch.arange(frames), *(torch.arange(size) for size in SHAPE))
    return cells[torch.randperm(len(cells), generator=generator)[:count]]


def sparse(cells: Tensor, channels: int, frames: int, dtype: torch.dtype = torch.float64) -> SparseTensor:
    sites, order = sort_sites(cells, SHAPE, frames)
    features = torch.randn(len(cells), channels, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return SparseTensor(features[order], sites)


def dense(features: Tensor, sites: SparseSites) -> Tensor:
    """[B, C, X, Y, Z], zero where there is no site."""
    grid = features.new_zeros(sites.frames, features.shape[1], *sites.shape)
    frame, x, y, z = sites.coordinates
    grid[frame, :, x, y, z] = features
    return grid


def weight_of(kernel: Kernel, in_channels: int = 3, out_channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(out_channels, *kernel.size, in_channels, generator=generator, dtype=torch.float64)


def by_dense(x: SparseTensor, weight: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """torch's convolution of the whole grid, and where it has outputs by the rule."""
    filled = dense(torch.ones_like(x.features[:, :1]), x.sites)
    if kernel.submanifold:
        is_site = filled > 0
    else:
        window = torch.ones(1, 1, *kernel.size, dtype=filled.dtype)
        is_site = functional.conv3d(filled, window, stride=kernel.stride, padding=kernel.padding) > 0.5
    grid = dense(x.features, x.sites)
    out = functional.conv3d(grid, weight.permute(0, 4, 1, 2, 3), stride=kernel.stride, padding=kernel.padding)
    return out * is_site, is_site[:, 0]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("method", [convolve_by_offset, convolve_by_output])
@pytest.mark.parametrize(("frames", "count"), [(1, 30), (2, 90), (3, 1), (2, 420)])
def test_convolution_is_the_dense_one(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, method: Callable[..., Tensor], frames: int, count: int
) -> None:
    monkeypatch.setattr(sparse_conv, "_PIECE", 7)  # so that the work comes in several pieces
    monkeypatch.setattr(sparse_conv, "_GATHERED", 500)
    x, weight = sparse(random_cells(frames, count), 3, frames), weight_of(kernel)
    rulebook = x.sites.rulebook(kernel)
    matrices = weight.flatten(1, 3).permute(1, 2, 0).contiguous()
    ours = method(x.features, matrices, rulebook)
    expected, is_site = by_dense(x, weight, kernel)
    assert rulebook.sites.shape == tuple(is_site.shape[1:])
    assert torch.equal(rulebook.sites.coordinates.t(), is_site.nonzero())
    torch.testing.assert_close(dense(ours, rulebook.sites), expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_layer_holds_spconv_s_layout(kernel: Kernel) -> None:
    torch.manual_seed(0)
    layer = SparseConv3d(3, 4, kernel)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {"weight": (4, *kernel.size, 3)}
    assert (
        0 < float(layer.weight.detach().abs().max()) < 1.0001 * (3 * kernel.volume) ** -0.5
    )  # as torch's own layers start
    x = sparse(random_cells(2, 60), 3, 2, torch.float32)
    out = layer(x)
    expected, _ = by_dense(x, layer.weight, kernel)
    torch.testing.assert_close(dense(out.features, out.sites), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [SUBMANIFOLD, KERNELS[3]], ids=str)
def test_gradients_are_those_of_differences(kernel: Kernel) -> None:
    x, weight = sparse(random_cells(2, 25), 2, 2), weight_of(kernel, 2, 3)

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        return x.with_features(features).convolve(weight, kernel).features

    inputs = (x.features.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(convolve, inputs)


def test_the_same_input_gives_the_same_bits() -> None:
    kernel = SUBMANIFOLD
    x = sparse(random_cells(2, 400), 16, 2, torch.float32)
    weight = weight_of(kernel, 16, 32).float().requires_grad_()
    runs = []
    for _ in range(3):
        features = x.features.clone().requires_grad_()
        out = SparseTensor(features, x.sites).convolve(weight, kernel).features
        runs.append([out, *torch.autograd.grad(out.square().sum(), [features, weight])])
    for again in runs[1:]:
        for first, second in zip(runs[0], again, strict=True):
            assert torch.equal(first, second)


def test_layers_on_the_same_sites_share_a_rulebook() -> None:
    x = sparse(random_cells(1, 40), 3, 1)
    same, down = x.convolve(weight_of(SUBMANIFOLD), SUBMANIFOLD), x.convolve(weight_of(KERNELS[2]), KERNELS[2])
    assert same.sites is x.sites
    assert x.sites.rulebook(SUBMANIFOLD) is same.with_features(same.features).sites.rulebook(SUBMANIFOLD)
    # Strided twice by the same kernel, the same sites object comes out; other sites never share one.
    assert x.convolve(weight_of(KERNELS[2]), KERNELS[2]).sites is down.sites
    assert down.sites.rulebook(SUBMANIFOLD) is not x.sites.rulebook(SUBMANIFOLD)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_without_sites_there_are_no_outputs(kernel: Kernel) -> None:
    x = sparse(torch.zeros(0, 4, dtype=torch.int64), 3, 2)
    features = x.features.requires_grad_()
    weight = weight_of(kernel).requires_grad_()
    out = x.convolve(weight, kernel)
    assert out.features.shape == (0, 4)
    out.features.sum().backward()
    assert features.grad is not None and features.grad.shape == (0, 3)
    assert weight.grad is not None and not weight.grad.any()
    matrices = weight.detach().flatten(1, 3).permute(1, 2, 0).contiguous()
    assert convolve_by_output(features.detach(), matrices, x.sites.rulebook(kernel)).shape == (0, 4)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[0, 7, 0, 0], [0, 0, 0, 0]], "1 of 2 voxels lie outside of the grid"),
        ([[2, 0, 0, 0]], "outside of the grid .* of 2 frames"),
        ([[0, 0, -1, 0]], "1 of 1 voxels lie outside"),
        ([[0, 1, 2, 3], [1, 1, 2, 3], [0, 1, 2, 3]], "1 of 3 voxels occur twice"),
        ([[0, 1, 2]], r"integers \[V, 4\].*\[1, 3\]"),
        ([[0.0, 1.0, 2.0, 3.0]], r"integers \[V, 4\].*float"),
    ],
)
def test_cells_that_cannot_be_are_refused(cells: list[list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sort_sites(torch.tensor(cells), SHAPE, 2)
