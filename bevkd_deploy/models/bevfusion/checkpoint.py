"""Reading a BEVFusion checkpoint of mmdet3d or mit-han-lab: every tensor accounted for, or an error that names it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.detector import BevFusion, ImageChannels
from bevkd_deploy.models.bevfusion.key_maps import NamedState, Variant, looks_like, named_state, variant_of
from bevkd_deploy.models.bevfusion.recorded import Fact, disagreements, recorded_facts, records_rgb, remedy, unrecorded
from bevkd_deploy.models.checkpoint import key_problems
from bevkd_deploy.models.weights_file import WeightsFile, read_weights

#: Sparse kernels are [kd, kh, kw, in, out] in spconv 1 and mmcv, [out, kd, kh, kw, in] in spconv 2 and here.
SparseLayout = Literal["spconv1", "spconv2"]

#: Tensors that the network computes from its geometry: a file may lack them, and must agree where it has them.
_CONSTANTS = re.compile(r"view_transform\.(frustum|dx|bx|nx)$|img_backbone\..*\.relative_position_index$")


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of a checkpoint, and what the checkpoint confirmed of the recipe.

    Attributes:
        path, sha256: the file.
        variant: whose network it is.
        image_channels: order of the colours that the network is given.
        sparse_layout: of the file's sparse kernels.
        loaded: the file's name by the network's, for each tensor of the network that was loaded.
        computed: tensors of the network that the file lacks and the geometry gives.
        ignored: reason by the file's name.
        others: what else is in the file beside the state dict and was not read.
        confirmed: what the checkpoint records, and the recipe agrees with.
        unrecorded: fields of the geometry that the checkpoint does not record; taken from the recipe as they are.
    """

    path: Path
    sha256: str
    variant: Variant
    image_channels: ImageChannels
    sparse_layout: SparseLayout
    loaded: dict[str, str]
    computed: tuple[str, ...]
    ignored: dict[str, str]
    others: tuple[str, ...]
    confirmed: tuple[Fact, ...]
    unrecorded: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by what became of them; `renamed` is a part of `loaded`."""
        return {
            "loaded": len(self.loaded),
            "renamed": sum(new != old for new, old in self.loaded.items()),
            "computed": len(self.computed),
            "ignored": len(self.ignored),
        }

    def lines(self) -> list[str]:
        """For people, without the names of what was loaded."""
        counts = self.counts
        lines = [
            f"{self.path}: {self.variant.description}, sha256 {self.sha256}",
            f"{counts['loaded']} tensors loaded, {counts['renamed']} of them under another name; sparse kernels as "
            f"{self.sparse_layout} has them" + (f"; {self.image_channels} images" if self.variant.camera else ""),
        ]
        if self.computed:
            lines.append(f"computed from the geometry: {', '.join(self.computed)}")
        for reason in dict.fromkeys(self.ignored.values()):
            keys = [key for key, why in self.ignored.items() if why == reason]
            lines.append(f"ignored, {reason}: {', '.join(keys)}")
        if self.others:
            lines.append(f"not read, no weights: {', '.join(self.others)}")
        confirmed = ", ".join(dict.fromkeys(fact.name for fact in self.confirmed))
        lines.append(f"the checkpoint confirms: {confirmed or 'nothing'}")
        if self.unrecorded:
            lines.append(f"not recorded in the checkpoint, taken from the recipe: {', '.join(self.unrecorded)}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "variant": {"naming": self.variant.naming, "camera": self.variant.camera},
            "image_channels": self.image_channels,
            "box_coding": self.variant.box_coding,
            "sparse_layout": self.sparse_layout,
            "counts": self.counts,
            "loaded": dict(self.loaded),
            "computed": list(self.computed),
            "ignored": dict(self.ignored),
            "others": list(self.others),
            "confirmed": [{"name": fact.name, "value": fact.value, "where": fact.where} for fact in self.confirmed],
            "unrecorded": list(self.unrecorded),
        }


def bevfusion_variant(path: Path, expected_sha256: str | None = None) -> Variant:
    """Which BEVFusion a checkpoint is of, from its keys.

    Raises:
        ArtifactError: as `read_bevfusion`, of the file alone.
    """
    return variant_in(read_weights(path, expected_sha256))


def variant_in(file: WeightsFile) -> Variant:
    """The same of a file that was read already."""
    return _recognised(file, named_state(file.state))


def read_bevfusion(
    path: Path, geometry: BevFusionGeometry, cameras: tuple[str, ...], expected_sha256: str | None = None
) -> tuple[BevFusion, LoadReport]:
    """A BEVFusion network with the weights of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: a checkpoint of mmdet3d 1.x's or mit-han-lab's BEVFusion (CUDA-BEVFusion's ResNet-50 is one of the
            latter): torch.save's .pth, or .safetensors.
        geometry: the grid, images and classes that it was trained for.
        cameras: channels in the order of the images; () for LiDAR alone.
        expected_sha256: hash that the file must have.

    Raises:
        ArtifactError: the file is missing, has another hash, is damaged or unsafe; it is no BEVFusion; it was trained
            for other sensors, another grid or other classes; or a tensor of it or of the network has no counterpart.
            All problems of a kind are named.
    """
    return bevfusion_in(read_weights(path, expected_sha256), geometry, cameras)


def bevfusion_in(
    file: WeightsFile, geometry: BevFusionGeometry, cameras: tuple[str, ...]
) -> tuple[BevFusion, LoadReport]:
    """The same of a file that was read already; arguments, result and errors of `read_bevfusion`."""
    path, named = file.path, named_state(file.state)
    variant = _recognised(file, named)
    _check_sensors(path, variant, cameras)
    named = _without_rough_constants(named)
    facts = recorded_facts(named.tensors, file.meta)
    _check_geometry(path, facts, geometry)
    channels: ImageChannels = "rgb" if records_rgb(file.meta) else variant.image_channels
    with torch.random.fork_rng(devices=[]):  # its random weights are all overwritten
        network = BevFusion(geometry, variant.camera, channels, cameras, variant.box_coding)
    layout, computed = _load(path, network, named)
    report = LoadReport(
        path,
        file.sha256,
        variant,
        channels,
        layout,
        {key: named.file_keys[key] for key in network.state_dict() if key in named.tensors},
        computed,
        named.ignored,
        file.others,
        tuple(facts),
        unrecorded(facts, variant.camera is not None),
    )
    return network.eval(), report


def _recognised(file: WeightsFile, named: NamedState) -> Variant:
    variant = variant_of(named)
    if variant is None:
        raise ArtifactError(
            f"checkpoint {file.path} is no BEVFusion detector that can be read natively (sparse LiDAR encoder, "
            "TransFusion head, and with cameras Swin-T or ResNet-50 and the depth view transform). "
            f"{looks_like(file.state, file.header)}"
        )
    return variant


def _check_sensors(path: Path, variant: Variant, cameras: tuple[str, ...]) -> None:
    if variant.camera is None and cameras:
        raise ArtifactError(
            f"checkpoint {path} is a BEVFusion of LiDAR alone, but {len(cameras)} cameras are asked for. Use a "
            "camera+LiDAR checkpoint, or ask for a LiDAR-only teacher"
        )
    if variant.camera is not None and not cameras:
        raise ArtifactError(
            f"checkpoint {path} is {variant.description}, but no cameras are asked for. Use a LiDAR-only checkpoint, "
            "or give the teacher its cameras"
        )


def _without_rough_constants(named: NamedState) -> NamedState:
    """Constants that were saved in half precision are no longer the grid's: the network computes its own."""
    rough = {
        key: tensor.dtype
        for key, tensor in named.tensors.items()
        if _CONSTANTS.match(key) and tensor.dtype in (torch.float16, torch.bfloat16)
    }
    reasons = {named.file_keys[key]: f"constant rounded to {kind}, computed instead" for key, kind in rough.items()}
    kept = {key: tensor for key, tensor in named.tensors.items() if key not in rough}
    return NamedState(named.naming, kept, named.file_keys, {**named.ignored, **reasons})


def _check_geometry(path: Path, facts: list[Fact], geometry: BevFusionGeometry) -> None:
    problems = disagreements(facts, geometry)
    if problems:
        advice = remedy(facts, geometry)
        raise ArtifactError(
            "\n  ".join([f"checkpoint {path} was trained for another grid, other images or other classes:", *problems])
            + (f"\n{advice}" if advice else "")
        )


def _load(path: Path, network: nn.Module, named: NamedState) -> tuple[SparseLayout, tuple[str, ...]]:
    """Fill the network; the layout of the file's sparse kernels, and what the network computed itself."""
    wanted = network.state_dict()
    tensors, layout = with_spconv2_kernels(named.tensors, wanted)
    computed = tuple(key for key in wanted if key not in tensors and _CONSTANTS.match(key))
    tensors = {**tensors, **{key: wanted[key] for key in computed}}
    problems = [*key_problems(tensors, wanted), *_value_problems(tensors, wanted)]
    if layout is None:
        problems.append("sparse kernels: some are [kd, kh, kw, in, out] (spconv 1), some [out, kd, kh, kw, in]")
    if problems or layout is None:
        raise ArtifactError(
            "\n  ".join([f"checkpoint {path} does not fit BEVFusion (names are mmdet3d's):", *problems])
            + "\nIt is damaged, of a changed network, or teacher.geometry is not that of its training"
        )
    network.load_state_dict(tensors, strict=True)
    return layout, computed


def with_spconv2_kernels(
    tensors: dict[str, Tensor], wanted: dict[str, Tensor]
) -> tuple[dict[str, Tensor], SparseLayout | None]:
    """Tensors with their sparse kernels as [out, kd, kh, kw, in], and how the file had them; None if it mixes layouts.

    A kernel's shape tells its layout unless out, kd, kh, kw and in are all the same number, which no layer of BEVFusion
    has; such a kernel would follow the others of its file. Kernels of neither shape stay as they are, for the error.
    """
    kernels = {key: value for key, value in tensors.items() if key in wanted and wanted[key].ndim == value.ndim == 5}
    as_spconv2 = {key for key, value in kernels.items() if value.shape == wanted[key].shape}
    as_spconv1 = {key for key, value in kernels.items() if _turned(value).shape == wanted[key].shape}
    only_1, only_2 = as_spconv1 - as_spconv2, as_spconv2 - as_spconv1
    if not only_1:
        return tensors, "spconv2"
    turned = {key: _turned(kernels[key]) for key in (only_1 if only_2 else as_spconv1)}
    return {**tensors, **turned}, None if only_2 else "spconv1"


def _turned(kernel: Tensor) -> Tensor:
    """[kd, kh, kw, in, out] -> [out, kd, kh, kw, in]."""
    return kernel.permute(4, 0, 1, 2, 3).contiguous()


def _value_problems(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Tensors whose shapes fit and whose values cannot be right."""
    problems = []
    for key, own in wanted.items():
        value = found.get(key)
        if value is None or value.shape != own.shape:
            continue
        if value.is_floating_point() != own.is_floating_point() or value.is_complex():
            problems.append(f"type: {key} is {value.dtype} in the file, {own.dtype} in the model")
        elif value.is_floating_point() and not math.isfinite(value.sum(dtype=torch.float64)):
            problems.append(f"not finite: {key}")
        elif _CONSTANTS.match(key) and not torch.allclose(value.to(own.dtype), own, rtol=1e-4, atol=1e-3):
            problems.append(f"constant: {key} has other values than the geometry gives")
    return problems
