"""Random weights whose batch norms are not the identity, and graph inputs that reach every input's range."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec


@pytest.fixture(scope="session")
def stir_norms() -> Callable[[nn.Module], nn.Module]:
    """Give every batch norm of a module statistics and weights of its own."""

    def stir(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0.0, 0.2, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
                part.weight.data.uniform_(0.7, 1.3, generator=generator)
                part.bias.data.normal_(0.0, 0.2, generator=generator)
        return module

    return stir


@pytest.fixture(scope="session")
def make_inputs() -> Callable[[GraphSpec, int], dict[str, Tensor]]:
    """Random graph inputs [B, ...]; every second pillar and every third BEV cell is padding."""

    def make(spec: GraphSpec, batch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2)
        rows, columns = spec.bev_shape_yx
        cells = spec.pillar_shape_yx[0] * spec.pillar_shape_yx[1]
        shapes = {tensor.name: (batch, *tensor.shape) for tensor in spec.inputs()}
        images = torch.randint(0, 256, shapes["images"], generator=generator, dtype=torch.uint8)
        count = torch.randint(1, spec.max_points + 1, shapes["pillar_count"], generator=generator, dtype=torch.int32)
        count[:, 1::2] = 0
        slots = torch.arange(spec.max_points) < count[..., None]
        low, high = torch.tensor(spec.range_m[:3]), torch.tensor(spec.range_m[3:])
        xyz = torch.rand((*shapes["pillars"][:3], 3), generator=generator) * (high - low) + low
        pillars = torch.cat([xyz, torch.rand((*xyz.shape[:3], 2), generator=generator)], dim=-1) * slots[..., None]
        index = torch.stack([torch.randperm(cells, generator=generator)[: spec.max_pillars] for _ in range(batch)])
        index[:, 1::2] = spec.pillar_dump_index
        pixel = torch.randint(0, spec.pixel_dump_index, shapes["lut_pixel"], generator=generator)
        depth = pixel * spec.depth_bins + torch.randint(0, spec.depth_bins, pixel.shape, generator=generator)
        hidden = (torch.arange(rows * columns) % 3 == 0).expand_as(pixel)
        pixel[hidden], depth[hidden] = spec.pixel_dump_index, spec.depth_dump_index
        return {
            "images": images,
            "pillars": pillars,
            "pillar_count": count,
            "pillar_index": index.int(),
            "lut_pixel": pixel.int(),
            "lut_depth": depth.int(),
        }

    return make
