"""What a BEVFusion checkpoint says about its own grid, images and classes, held against the recipe's.

Weights of another grid or class order load key for key and detect nothing. Two places tell: constants in the state dict
(the frustum and cells of the view transform, the rows of the heatmap), and, in a checkpoint of mmengine, the text of
its configuration and its dataset's classes.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.detector import IMAGE_MEAN, IMAGE_STD

#: Fields of BevFusionGeometry that weights depend on and a checkpoint may tell.
_COMPARED = (
    "image_size_px", "feature_stride", "depth_m", "depth_step_m", "camera_cell_m", "camera_z_m", "camera_downsample",
    "range_m", "voxel_size_m", "max_points", "bev_stride", "classes",
)  # fmt: skip

#: Of those, what a network without cameras has no use for.
_CAMERA_FIELDS = _COMPARED[:7]

_ABSENT = object()


@dataclass(frozen=True)
class Fact:
    """One value that a checkpoint records.

    Attributes:
        name: the field of `BevFusionGeometry`, or what else it is of.
        value: as that field holds it.
        where: the place in the checkpoint.
    """

    name: str
    value: Any
    where: str


def recorded_facts(tensors: dict[str, Tensor], meta: dict[str, Any]) -> list[Fact]:
    """Everything that a checkpoint tells of its grid, images and classes; the same field may be told twice.

    Args:
        tensors: its state dict under mmdet3d's names.
        meta: what the training framework wrote beside it, {} if nothing.
    """
    return [*_from_tensors(tensors), *_from_meta(meta)]


def disagreements(facts: Sequence[Fact], geometry: BevFusionGeometry) -> list[str]:
    """One line for each fact that the recipe's geometry contradicts."""
    lines = []
    for fact in facts:
        asked = _asked(fact.name, geometry)
        if not _same(fact.value, asked):
            line = f"{fact.name} is {_text(fact.value)} in the checkpoint ({fact.where}), {_text(asked)} here"
            reordered = fact.name == "classes" and sorted(fact.value) == sorted(asked)
            lines.append(line + (": the same names in another order" if reordered else ""))
    return lines


def remedy(facts: Sequence[Fact], geometry: BevFusionGeometry) -> str:
    """What to write into the recipe so that the geometry is the checkpoint's; '' where no field mends it."""
    wrong = {
        fact.name: fact.value
        for fact in facts
        if fact.name in _COMPARED and not _same(fact.value, _asked(fact.name, geometry))
    }
    fields = ", ".join(f"{name}: {_text(value)}" for name, value in wrong.items())
    return f"If the checkpoint is the right one, write teacher.geometry: {{{fields}}}" if fields else ""


def unrecorded(facts: Sequence[Fact], has_camera: bool) -> tuple[str, ...]:
    """Fields of the geometry that the checkpoint does not tell: they are taken from the recipe unchecked."""
    known = {fact.name for fact in facts}
    fields = _COMPARED if has_camera else [name for name in _COMPARED if name not in _CAMERA_FIELDS]
    return tuple(name for name in fields if name not in known)


def records_rgb(meta: dict[str, Any]) -> bool | None:
    """Whether the configuration in `meta` turns images to RGB; None if there is none."""
    turned = _find(_config(meta), "model", "data_preprocessor", "bgr_to_rgb")
    return turned if isinstance(turned, bool) else None


def _asked(name: str, geometry: BevFusionGeometry) -> Any:
    if name == "number of classes":
        return len(geometry.classes)
    if name == "camera range_m (x, y)":
        return _xy_range(geometry.range_m)
    if name == "depth_m":
        first, last = geometry.depth_m
        return first, first + math.ceil((last - first) / geometry.depth_step_m - 1e-6) * geometry.depth_step_m
    return {"image mean": IMAGE_MEAN, "image std": IMAGE_STD}.get(name) or getattr(geometry, name)


def _xy_range(range_m: Sequence[float]) -> tuple[float, ...]:
    return (range_m[0], range_m[1], range_m[3], range_m[4])


def _from_tensors(tensors: dict[str, Tensor]) -> list[Fact]:
    facts = []
    heatmap = tensors.get("bbox_head.heatmap_head.1.bias")
    if heatmap is not None:
        facts.append(Fact("number of classes", heatmap.numel(), "bbox_head.heatmap_head.1.bias"))
    frustum = tensors.get("view_transform.frustum")
    if frustum is not None and frustum.ndim == 4 and frustum.shape[-1] == 3 and min(frustum.shape) > 1:
        facts += _from_frustum(frustum)
    cells = [tensors.get(f"view_transform.{name}") for name in ("dx", "bx", "nx")]
    if all(cell is not None and cell.shape == (3,) for cell in cells):
        size, first, count = ([float(value) for value in cell] for cell in cells if cell is not None)
        low = [center - side / 2 for center, side in zip(first, size, strict=True)]
        high = [start + side * number for start, side, number in zip(low, size, count, strict=True)]
        where = "view_transform.dx, bx, nx"
        facts += [
            Fact("camera_cell_m", _rounded(size[0]), where),
            Fact("camera_z_m", (_rounded(low[2]), _rounded(high[2])), where),
            Fact("camera range_m (x, y)", tuple(_rounded(value) for value in (*low[:2], *high[:2])), where),
        ]
    return facts


def _from_frustum(frustum: Tensor) -> list[Fact]:
    """Pixels and depths of the view transform's frustum [D, h, w, 3]: u from 0 to W - 1, v from 0 to H - 1, depth."""
    height, width = round(float(frustum[..., 1].max())) + 1, round(float(frustum[..., 0].max())) + 1
    depths = frustum[:, 0, 0, 2].double()
    step = _rounded(float(depths[1] - depths[0]))
    where = "view_transform.frustum"
    return [
        Fact("image_size_px", (height, width), where),
        Fact("feature_stride", round(height / frustum.shape[1]), where),
        Fact("depth_step_m", step, where),
        Fact("depth_m", (_rounded(float(depths[0])), _rounded(float(depths[-1]) + step)), where),
    ]


def _from_meta(meta: dict[str, Any]) -> list[Fact]:
    facts = []
    dataset = meta.get("dataset_meta")
    classes = dataset.get("classes") if isinstance(dataset, dict) else meta.get("CLASSES")
    where = "meta.dataset_meta" if isinstance(dataset, dict) else "meta.CLASSES"
    if classes is not None and _is_list(classes, str):
        facts.append(Fact("classes", tuple(classes), where))
    config = _config(meta)
    voxels = ("model", "data_preprocessor", "voxelize_cfg")
    view = ("model", "view_transform")
    test = ("model", "bbox_head", "test_cfg")
    for name, kind, *place in (
        ("range_m", float, *voxels, "point_cloud_range"),
        ("voxel_size_m", float, *voxels, "voxel_size"),
        ("image_size_px", int, *view, "image_size"),
        ("image mean", float, "model", "data_preprocessor", "mean"),
        ("image std", float, "model", "data_preprocessor", "std"),
        ("classes", str, "metainfo", "classes"),
    ):
        value = _find(config, *place)
        if _is_list(value, kind):
            facts.append(Fact(name, tuple(value), f"meta.cfg {'.'.join(place)}"))
    for name, *place in (
        ("max_points", *voxels, "max_num_points"),
        ("bev_stride", *test, "out_size_factor"),
        ("camera_downsample", *view, "downsample"),
    ):
        value = _find(config, *place)
        if isinstance(value, int):
            facts.append(Fact(name, value, f"meta.cfg {'.'.join(place)}"))
    return facts


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    text = meta.get("cfg")
    return config_values(text) if isinstance(text, str) else {}


def config_values(text: str) -> dict[str, Any]:
    """The assignments of a configuration's text (Python, as mmengine writes it), read and not run.

    Literals, dict(...) calls and containers of them are understood; what else stands there is left out.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _value(node.value)
            if value is not _ABSENT:
                values[node.targets[0].id] = value
    return values


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return [value for value in map(_value, node.elts) if value is not _ABSENT]
    if isinstance(node, ast.Dict):
        keys = [_ABSENT if key is None else _value(key) for key in node.keys]
        return _pairs(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return _pairs((keyword.arg, _value(keyword.value)) for keyword in node.keywords)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _ABSENT


def _pairs(pairs: Any) -> dict[str, Any]:
    return {key: value for key, value in pairs if isinstance(key, str) and value is not _ABSENT}


def _find(config: dict[str, Any], *path: str) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _is_list(value: Any, kind: type) -> bool:
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, kinds) for item in value)


def _same(recorded: Any, asked: Any) -> bool:
    if isinstance(recorded, tuple) and isinstance(asked, tuple):
        return len(recorded) == len(asked) and all(map(_same, recorded, asked))
    if isinstance(recorded, float) or isinstance(asked, float):
        return math.isclose(recorded, asked, rel_tol=1e-4, abs_tol=1e-4)
    return bool(recorded == asked)


def _rounded(value: float) -> float:
    """Without the noise of float32."""
    return round(value, 4)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
