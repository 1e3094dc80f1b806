"""mmdet3d's BEVFusionSparseEncoder: voxels to a BEV map, with its state dict keys.

Source: open-mmlab/mmdetection3d@fe25f7a, projects/BEVFusion, the configuration of its nuScenes models.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.sparse_conv import SparseConv3d, SparseMap, SparseTensor, submanifold_conv3d
from bevkd_deploy.models.bevfusion.sparse_sites import Kernel, Triple, sort_sites
from bevkd_deploy.models.bevfusion.spconv_backend import SpconvTensor, spconv_on_cuda

#: Channels of the stages, and the padding of the strided convolution that ends each but the last.
STAGES: tuple[tuple[int, Triple | None], ...] = ((16, (1, 1, 1)), (32, (1, 1, 1)), (64, (1, 1, 0)), (128, None))
OUT_CHANNELS = 128

Backend = Literal["auto", "torch", "spconv"]


class SparseEncoder(nn.Module):
    """Sparse residual stages that halve the grid three times, then a convolution along z, then the BEV map.

    Args:
        geometry: grid of the voxels; one more cell in height than it says, as mmdet3d has it.
        in_channels: features of a voxel.
        backend: `torch`: ours; `spconv`: the library's kernels, whose results differ by rounding; `auto`: spconv on
            CUDA where it is installed, else ours. On a CPU spconv 2.3.8 is right with one thread alone.

    Attributes:
        out_channels: of the BEV map; 256 for the default geometry.

    Raises:
        UsageError: the geometry's BEV stride or height is none that these stages can have.
    """

    def __init__(self, geometry: BevFusionGeometry, in_channels: int = 5, backend: Backend = "auto") -> None:
        super().__init__()
        nx, ny, nz = geometry.grid_size
        self.shape: Triple = (nx, ny, nz + 1)
        self.out_channels = OUT_CHANNELS * _levels(geometry, self.shape[2])
        self.in_channels = in_channels
        self.backend = backend
        channels = STAGES[0][0]
        self.conv_input = _conv_norm_relu(submanifold_conv3d(in_channels, channels))
        stages: dict[str, nn.Module] = {}
        for number, (width, padding) in enumerate(STAGES, start=1):
            blocks: list[nn.Module] = [SparseBasicBlock(width), SparseBasicBlock(width)]
            if padding is not None:
                down = SparseConv3d(width, STAGES[number][0], Kernel((3, 3, 3), (2, 2, 2), padding))
                blocks.append(_conv_norm_relu(down))
            stages[f"encoder_layer{number}"] = SparseSequential(*blocks)
        self.encoder_layers = SparseSequential()
        for name, stage in stages.items():
            self.encoder_layers.add_module(name, stage)
        self.conv_out = _conv_norm_relu(SparseConv3d(STAGES[-1][0], OUT_CHANNELS, Kernel((1, 1, 3), (1, 1, 2))))

    def forward(self, voxel_features: Tensor, voxel_coordinates: Tensor, batch_size: int) -> Tensor:
        """Encode a batch of voxels.

        Args:
            voxel_features: [V, in_channels], in any order.
            voxel_coordinates: integers [V, 4]: frame, x, y, z.
            batch_size: frames of the batch.

        Returns:
            [B, out_channels, X, Y]; channel c at the d-th of D levels from below is c * D + d. [B, 256, 180, 180] for
            the default geometry.

        Raises:
            DataError: shapes do not fit, or voxels lie outside of the grid or occur twice.
        """
        if voxel_features.shape != (len(voxel_coordinates), self.in_channels):
            raise DataError(
                f"voxel features must be [{len(voxel_coordinates)}, {self.in_channels}], a row for each coordinate, "
                f"got {list(voxel_features.shape)}"
            )
        # Rounded to half precision the sums of a convolution are of no use: mmdet3d turns autocast off here, too.
        with torch.autocast(voxel_features.device.type, enabled=False):
            x = self._sparse(voxel_features.to(next(self.parameters()).dtype), voxel_coordinates, batch_size)
            return _bev_map(self.conv_out(self.encoder_layers(self.conv_input(x))))

    def _sparse(self, features: Tensor, coordinates: Tensor, frames: int) -> SparseMap:
        """The input as the backend takes it."""
        sites, order = sort_sites(coordinates, self.shape, frames)
        features = features[order]
        use_spconv = spconv_on_cuda(features) if self.backend == "auto" else self.backend == "spconv"
        # spconv has no answer to an empty batch.
        if use_spconv and sites.count:
            return SpconvTensor.of(features, sites)
        return SparseTensor(features, sites)


class SparseSequential(nn.Sequential):
    """Modules in a row; those that are not sparse are applied to the features."""

    def forward(self, x: SparseMap) -> SparseMap:
        """Sparse in, sparse out."""
        for module in self:
            on_features = isinstance(module, nn.BatchNorm1d | nn.ReLU)
            x = x.with_features(module(x.features)) if on_features else module(x)
        return x


class SparseBasicBlock(nn.Module):
    """Two 3x3x3 submanifold convolutions with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = submanifold_conv3d(channels, channels)
        self.bn1 = _norm(channels)
        self.conv2 = submanifold_conv3d(channels, channels)
        self.bn2 = _norm(channels)

    def forward(self, x: SparseMap) -> SparseMap:
        """[V, channels] -> the same shape at the same sites."""
        y = self.conv1(x)
        y = self.conv2(y.with_features(torch.relu(self.bn1(y.features))))
        return y.with_features(torch.relu(self.bn2(y.features) + x.features))


def _levels(geometry: BevFusionGeometry, cells: int) -> int:
    """Levels along z at the end of the stages, from the cells of the input."""
    paddings = [padding[2] for _, padding in STAGES if padding is not None]
    if geometry.bev_stride != 2 ** len(paddings):
        raise UsageError(
            f"bev_stride must be {2 ** len(paddings)}, what the sparse encoder's stages make of the grid, got "
            f"{geometry.bev_stride}"
        )
    levels = cells
    for padding in paddings:
        levels = (levels + 2 * padding - 3) // 2 + 1
    levels = (levels - 3) // 2 + 1  # conv_out
    if levels < 1:
        raise UsageError(
            f"{cells - 1} voxels in height are too few for the sparse encoder, nothing is left of them; mmdet3d's "
            "nuScenes models have 40: check range_m and voxel_size_m"
        )
    return levels


def _conv_norm_relu(conv: SparseConv3d) -> SparseSequential:
    return SparseSequential(conv, _norm(conv.weight.shape[0]), nn.ReLU())


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def _bev_map(x: SparseMap) -> Tensor:
    """Features at cells -> dense [B, C * Z, X, Y], zero elsewhere, z fastest within a channel."""
    (frame, cell_x, cell_y, cell_z), (nx, ny, nz), frames = x.cells()
    features = x.features
    channels = features.shape[1]
    dense = features.new_zeros(frames, channels, nz * nx * ny)
    dense[frame.long(), :, ((cell_z * nx + cell_x) * ny + cell_y).long()] = features
    return dense.view(frames, channels * nz, nx, ny)
