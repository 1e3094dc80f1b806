"""Sparse convolution by the library spconv 2 (spconv.pytorch), where it is installed. Never needed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bevkd_deploy.contracts.errors import CannotRunHere
from bevkd_deploy.models.bevfusion.sparse_sites import Kernel, SparseSites, Triple


def spconv_on_cuda(features: Tensor) -> bool:
    """Whether spconv has kernels for where these features are, other than its CPU's, which race."""
    if not features.is_cuda or importlib.util.find_spec("spconv") is None:
        return False
    from spconv.cppconstants import CPU_ONLY_BUILD

    return not CPU_ONLY_BUILD


@dataclass(frozen=True, eq=False)
class SpconvTensor:
    """Features at cells, kept as spconv's own tensor.

    Attributes:
        tensor: spconv.pytorch.SparseConvTensor.
        level: number of strided convolutions before it; names the sites, so that layers share their pairs.
    """

    tensor: Any
    level: int

    @classmethod
    def of(cls, features: Tensor, sites: SparseSites) -> SpconvTensor:
        """Wrap features [V, C] at sites.

        Raises:
            CannotRunHere: spconv is not installed.
        """
        try:
            from spconv.pytorch import SparseConvTensor
        except ImportError as error:
            raise CannotRunHere(
                f"backend 'spconv' needs the package spconv, which cannot be imported ({error}); install the build of "
                "your CUDA version (such as spconv-cu120), or take backend 'torch'"
            ) from error
        indices = sites.coordinates.t().int().contiguous()
        return cls(SparseConvTensor(features, indices, list(sites.shape), sites.frames), 0)

    @property
    def features(self) -> Tensor:
        """[V, C]."""
        features: Tensor = self.tensor.features
        return features

    def with_features(self, features: Tensor) -> SpconvTensor:
        """The same cells with other features [V, any]."""
        return replace(self, tensor=self.tensor.replace_feature(features))

    def convolve(self, weight: Tensor, kernel: Kernel) -> SpconvTensor:
        """Convolution with `weight` [out, kx, ky, kz, in]."""
        layer = _layer(weight.shape[4], weight.shape[0], kernel, f"{self.level}/{kernel}")
        layer.train(torch.is_grad_enabled())  # in its eval mode it has no gradient
        out = functional_call(layer, {"weight": weight}, (self.tensor,))
        return SpconvTensor(out, self.level if kernel.submanifold else self.level + 1)

    def cells(self) -> tuple[Tensor, Triple, int]:
        """Coordinates int32 [4, V] (frame, x, y, z), shape of the grid, frames of the batch."""
        x, y, z = self.tensor.spatial_shape
        return self.tensor.indices.t(), (x, y, z), self.tensor.batch_size


@lru_cache(maxsize=256)
def _layer(in_channels: int, out_channels: int, kernel: Kernel, key: str) -> nn.Module:
    """spconv's layer of a kind, without weights of its own."""
    import spconv.pytorch as spconv

    make = spconv.SubMConv3d if kernel.submanifold else spconv.SparseConv3d
    with torch.device("meta"):
        layer: nn.Module = make(
            in_channels, out_channels, kernel.size, kernel.stride, kernel.padding, bias=False, indice_key=key
        )
    return layer
