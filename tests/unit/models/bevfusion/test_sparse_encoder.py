"""The sparse encoder against the same network of dense convolutions, and against mmdet3d's own numbers.

The keys and values of the full network are held against mmdet3d's in test_golden.py.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bevkd_deploy.contracts.errors import CannotRunHere, DataError, UsageError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion import sparse_conv
from bevkd_deploy.models.bevfusion.sparse_encoder import Backend, SparseEncoder
from bevkd_deploy.models.bevfusion.voxels import Voxelization

#: 32 x 16 x 25 cells as the encoder counts them, 4 x 2 x 1 at the end.
SMALL = BevFusionGeometry(range_m=(-16.0, -8.0, -4.0, 16.0, 8.0, 20.0), voxel_size_m=(1.0, 1.0, 1.0), camera_cell_m=4.0)

BACKENDS: tuple[Backend, ...] = ("torch", "spconv")

#: What mmdet3d's own encoder computes with the closed-form weights on the real keyframe: sum of absolute values,
#: and some values by flat index of the map [1, 256, 180, 180].
GOLDEN_ABS_SUM = 141435.19154944018
GOLDEN_VALUES = {
    3673: 0.17102524638175964, 633329: 0.0163955669850111, 1507112: 0.11183159798383713, 2966142: 0.035813506692647934,
    4321927: 0.08680877089500427, 5335967: 0.6504309177398682,
    6951659: 0.3913051187992096, 8292728: 0.17111341655254364,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> SparseEncoder:
    torch.manual_seed(0)
    return stirred(SparseEncoder(SMALL).eval())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """spconv's CPU kernels are right with one thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stirred(encoder: SparseEncoder) -> SparseEncoder:
    """Batch norms that are not the identity."""
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0.0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.7, 1.3)
            part.bias.data.normal_(0.0, 0.2)
    return encoder


def voxels(frames: int, count: int) -> tuple[Tensor, Tensor]:
    """Features [V, 5] and distinct cells [V, 4] in random order."""
    generator = torch.Generator().manual_seed(3)
    cells = torch.cartesian_prod(torch.arange(frames), *(torch.arange(size) for size in SMALL.grid_size))
    cells = cells[torch.randperm(len(cells), generator=generator)[:count]]
    return torch.randn(count, 5, generator=generator), cells


class DenseTwin:
    """The architecture written with dense convolutions and a map of the filled cells."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def __call__(self, features: Tensor, cells: Tensor, frames: int) -> Tensor:
        grid = torch.zeros(frames, 5, 32, 16, 25)
        mask = torch.zeros(frames, 1, 32, 16, 25)
        frame, x, y, z = cells.t()
        grid[frame, :, x, y, z] = features
        mask[frame, :, x, y, z] = 1.0
        grid = self.conv("conv_input.0", "conv_input.1", grid, mask).relu()
        paddings: list[Any] = [1, 1, (1, 1, 0), None]
        for number, padding in enumerate(paddings, start=1):
            stage = f"encoder_layers.encoder_layer{number}"
            for block in (f"{stage}.0", f"{stage}.1"):
                inner = self.conv(f"{block}.conv1", f"{block}.bn1", grid, mask).relu()
                grid = (self.conv(f"{block}.conv2", f"{block}.bn2", inner, mask) + grid).relu()
            if padding is not None:
                grid, mask = self.down(f"{stage}.2", grid, mask, 2, padding)
        grid, mask = self.down("conv_out", grid, mask, (1, 1, 2), 0)
        # [B, C, X, Y, Z] -> z next to the channel, as mmdet3d's encoder lays it out
        return grid.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def conv(self, conv: str, norm: str, grid: Tensor, mask: Tensor, stride: Any = 1, padding: Any = 1) -> Tensor:
        weight = self.state[f"{conv}.weight"].permute(0, 4, 1, 2, 3)
        grid = functional.conv3d(grid, weight, stride=stride, padding=padding)
        parts = [self.state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(grid, *parts, eps=1e-3) * mask

    def down(self, name: str, grid: Tensor, mask: Tensor, stride: Any, padding: Any) -> tuple[Tensor, Tensor]:
        window = torch.ones(1, 1, *self.state[f"{name}.0.weight"].shape[1:4])
        mask = (functional.conv3d(mask, window, stride=stride, padding=padding) > 0.5).float()
        return self.conv(f"{name}.0", f"{name}.1", grid, mask, stride, padding).relu(), mask


@pytest.mark.parametrize(("frames", "count"), [(1, 40), (2, 1500)])
def test_the_encoder_is_its_dense_twin(encoder: SparseEncoder, frames: int, count: int) -> None:
    features, cells = voxels(frames, count)
    with torch.no_grad():
        ours = encoder(features, cells, frames)
        expected = DenseTwin(encoder.state_dict())(features, cells, frames)
    assert ours.shape == (frames, 128, 4, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.01


def test_the_order_of_voxels_does_not_matter_and_frames_do_not_mix(encoder: SparseEncoder) -> None:
    features, cells = voxels(2, 900)
    turned = torch.arange(899, -1, -1)
    second = cells[:, 0] == 1
    with torch.no_grad():
        both = encoder(features, cells, 2)
        assert torch.equal(encoder(features[turned], cells[turned], 2), both)
        alone = encoder(features[second], cells[second] - torch.tensor([1, 0, 0, 0]), 1)
    torch.testing.assert_close(alone[0], both[1], rtol=1e-5, atol=1e-5)


def test_an_empty_batch_is_a_map_of_zeros(encoder: SparseEncoder) -> None:
    with torch.no_grad():
        out = encoder(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int64), 2)
    assert out.shape == (2, 128, 4, 2)
    assert not out.any()


def test_autocast_changes_nothing(encoder: SparseEncoder) -> None:
    features, cells = voxels(1, 200)
    with torch.no_grad():
        expected = encoder(features, cells, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(encoder(features.bfloat16().float(), cells, 1), encoder(features.bfloat16(), cells, 1))
            assert torch.equal(encoder(features, cells, 1), expected)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    encoder = SparseEncoder(SMALL)
    features, cells = voxels(2, 800)
    encoder(features.requires_grad_(), cells, 2).square().sum().backward()
    still = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    still += [name for name, parameter in encoder.named_parameters() if name not in still and not parameter.grad.any()]
    assert not still
    assert features.grad is not None and features.grad.any()


@pytest.mark.parametrize("method", ["convolve_by_offset", "convolve_by_output"])
def test_the_map_is_that_of_mmdet3d(
    monkeypatch: pytest.MonkeyPatch, one_thread: None, golden: Any, keyframe_root: Path, method: str
) -> None:
    monkeypatch.setattr(sparse_conv, "convolve_by_offset", getattr(sparse_conv, method))
    holds_golden_values(golden, keyframe_root, "torch")


def test_spconv_gives_the_map_of_mmdet3d(one_thread: None, golden: Any, keyframe_root: Path) -> None:
    pytest.importorskip("spconv.pytorch")
    holds_golden_values(golden, keyframe_root, "spconv")


def holds_golden_values(golden: Any, root: Path, backend: Backend) -> None:
    geometry = BevFusionGeometry()
    encoder = nn.ModuleDict({"pts_middle_encoder": SparseEncoder(geometry, backend=backend)}).eval()
    encoder.load_state_dict(golden.closed_form_weights(encoder.state_dict()))
    inputs = golden.keyframe_inputs(root)
    with torch.no_grad():
        found = Voxelization(geometry)(inputs["points"], inputs["point_count"])
        bev = encoder["pts_middle_encoder"](found.mean(), found.frame_coordinates(), 1)
    assert bev.shape == (1, 256, 180, 180)
    assert float(bev.double().abs().sum()) == pytest.approx(GOLDEN_ABS_SUM, rel=1e-5)
    assert bev.flatten()[list(GOLDEN_VALUES)].tolist() == pytest.approx(list(GOLDEN_VALUES.values()), rel=1e-4)


def test_spconv_computes_what_ours_computes(one_thread: None) -> None:
    pytest.importorskip("spconv.pytorch")
    features, cells = voxels(2, 1200)
    maps = []
    for backend in BACKENDS:
        torch.manual_seed(0)
        with torch.no_grad():
            maps.append(stirred(SparseEncoder(SMALL, backend=backend).eval())(features, cells, 2))
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_both_backends_compute_what_the_cpu_does_forward_and_back() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    cases: list[tuple[Backend, str]] = [("torch", "cpu"), ("torch", "cuda"), ("torch", "cuda")]
    if importlib.util.find_spec("spconv") is not None:
        cases.append(("spconv", "cuda"))  # its CPU kernels have no gradient in a torch without CUDA
    results = []
    for backend, device in cases:
        torch.manual_seed(0)
        encoder = stirred(SparseEncoder(SMALL, backend=backend).eval()).to(device)
        features, cells = (part.to(device) for part in voxels(2, 1200))
        out = encoder(features.requires_grad_(), cells, 2)
        gradients = torch.autograd.grad(out.square().sum(), [features, *encoder.parameters()])
        results.append([part.cpu() for part in (out.detach(), *gradients)])
    for again in results[1:]:
        for expected, found in zip(results[0], again, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(first, second) for first, second in zip(results[1], results[2], strict=True))


def test_a_missing_spconv_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(CannotRunHere, match="install the build .* or take backend 'torch'"):
        SparseEncoder(SMALL, backend="spconv")(*voxels(1, 10), 1)


def test_features_that_do_not_fit_are_refused(encoder: SparseEncoder) -> None:
    features, cells = voxels(1, 10)
    with pytest.raises(DataError, match=r"voxel features must be \[10, 5\].*got \[10, 4\]"):
        encoder(features[:, :4], cells, 1)
    with pytest.raises(DataError, match=r"must be \[10, 5\].*got \[9, 5\]"):
        encoder(features[:9], cells, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bev_stride": 4, "camera_cell_m": 2.0}, "bev_stride must be 8.*got 4"),
        ({"range_m": (-16.0, -8.0, -4.0, 16.0, 8.0, 12.0)}, "16 voxels in height are too few"),
    ],
)
def test_a_geometry_without_a_map_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SparseEncoder(BevFusionGeometry(**{**SMALL.model_dump(), **changes}))


def test_a_higher_grid_has_more_channels() -> None:
    assert SparseEncoder(BevFusionGeometry()).out_channels == 256
    high = BevFusionGeometry(**{**SMALL.model_dump(), "range_m": (-16.0, -8.0, -4.0, 16.0, 8.0, 36.0)})
    encoder = SparseEncoder(high).eval()
    features, cells = voxels(1, 30)
    with torch.no_grad():
        assert encoder(features, cells, 1).shape == (1, 256, 4, 2)
    assert encoder.out_channels == 256
